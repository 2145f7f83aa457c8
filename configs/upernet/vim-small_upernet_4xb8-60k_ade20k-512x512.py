# Vim-S, UperNet, ADE20K: 44.9 mIoU (paper). fp32. As published, except for the layer-wise
# learning-rate decay of 0.95 (see ../_base_/schedules/vim_60k.py) and for rope, which the
# published run used and no released checkpoint has.
_base_ = [
    '../_base_/models/upernet_vim.py',
    'mmseg::_base_/datasets/ade20k.py',
    'mmseg::_base_/default_runtime.py',
    '../_base_/schedules/vim_60k.py',
]
crop_size = (512, 512)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(arch='small'),
    neck=dict(embed_dim=384),
    decode_head=dict(in_channels=[384, 384, 384, 384], channels=384),
    auxiliary_head=dict(in_channels=384),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4, weight_decay=0.05))
train_dataloader = dict(batch_size=8, num_workers=8)
