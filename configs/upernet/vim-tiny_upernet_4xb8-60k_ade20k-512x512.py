# Vim-Ti, UperNet, ADE20K: 41.0 mIoU (paper). fp32. As published, except for the layer-wise
# learning-rate decay of 0.92, see ../_base_/schedules/vim_60k.py.
_base_ = [
    '../_base_/models/upernet_vim.py',
    'mmseg::_base_/datasets/ade20k.py',
    'mmseg::_base_/default_runtime.py',
    '../_base_/schedules/vim_60k.py',
]
crop_size = (512, 512)
# As published for this size: the taps are the bare mixer outputs, no norm.
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(arch='tiny', tap='mixer'),
)
optim_wrapper = dict(optimizer=dict(lr=2e-4, weight_decay=0.1))
train_dataloader = dict(batch_size=8, num_workers=8)
