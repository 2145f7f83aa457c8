# Vim-S, UperNet, ADE20K: 44.9 mIoU (paper), fp32. The published recipe with two differences:
# layer-wise decay reaches the blocks (see vim-tiny), and there is no rotary embedding, which the
# published run had and no released checkpoint has. ..._as-published.py has both as they were.
_base_ = [
    '../_base_/models/upernet_vim.py',
    'mmseg::_base_/datasets/ade20k.py',
    'mmseg::_base_/default_runtime.py',
    '../_base_/schedules/vim_60k.py',
]
crop_size = (512, 512)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        arch='small',
        # init_cfg=dict(type='mmvim.PretrainedVim', checkpoint='…', cls_token='middle'),
    ),
    neck=dict(embed_dim=384),
    decode_head=dict(in_channels=[384, 384, 384, 384], channels=384),
    auxiliary_head=dict(in_channels=384),
)
optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=0.05), paramwise_cfg=dict(layer_decay_rate=0.95)
)
train_dataloader = dict(batch_size=8, num_workers=8)
