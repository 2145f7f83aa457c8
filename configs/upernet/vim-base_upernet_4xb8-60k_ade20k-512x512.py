# Vim-B, UperNet, ADE20K. No dense result of this size was published: the recipe is Vim-S's.
_base_ = './vim-small_upernet_4xb8-60k_ade20k-512x512.py'
model = dict(
    backbone=dict(
        arch='base',
        # init_cfg=dict(type='mmvim.PretrainedVim', checkpoint='…', cls_token='middle'),
    ),
    neck=dict(embed_dim=768),
    decode_head=dict(in_channels=[768, 768, 768, 768], channels=768),
    auxiliary_head=dict(in_channels=768),
)
