# mmseg's Mask2Former with its own schedule, Vim-Ti in the place of ResNet-50 and a pyramid made
# of its taps in between. Needs mmdet, as the stock config does.
_base_ = [
    '../_base_/mmvim.py',
    'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
]
custom_imports = dict(imports=['mmdet.models', 'mmvim'], allow_failed_imports=False)
custom_hooks = [dict(type='mmvim.StrictCheckpointHook')]
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvim.VisionMamba',
        arch='tiny',
        img_size=512,
        cls_token='none',
        out_norm='none',
        out_indices=[5, 11, 17, 23],
        drop_path_rate=0.1,
        # init_cfg=dict(type='mmvim.PretrainedVim', checkpoint='…', cls_token='middle'),
    ),
    neck=dict(
        type='Feature2Pyramid',
        embed_dim=192,
        rescales=[4, 2, 1, 0.5],
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    ),
    decode_head=dict(in_channels=[192, 192, 192, 192]),
)
# Layer-wise decay instead of a tenth of the rate for the whole backbone; embeddings of the head
# are kept from weight decay as in the stock config.
embed_multi = dict(lr_mult=1.0, decay_mult=0.0)
optim_wrapper = dict(
    constructor='mmvim.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        _delete_=True,
        layer_decay_rate=0.92,
        custom_keys=dict(query_embed=embed_multi, query_feat=embed_multi, level_embed=embed_multi),
    ),
)
