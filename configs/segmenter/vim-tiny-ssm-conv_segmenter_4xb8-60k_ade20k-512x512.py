# The paper's ablation of directions, its default: a backward scan beside the forward one, with a
# convolution of its own. 35.9 mIoU (paper). The other directions inherit this file. The recipe
# of this head was not published: ours is the one of Vim-Ti with UperNet.
_base_ = [
    '../_base_/models/segmenter_vim.py',
    'mmseg::_base_/datasets/ade20k.py',
    'mmseg::_base_/default_runtime.py',
    '../_base_/schedules/vim_60k.py',
]
crop_size = (512, 512)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        direction='ssm_conv',
        # init_cfg=dict(type='mmvim.PretrainedVim', checkpoint='…', cls_token='middle'),
    ),
)
optim_wrapper = dict(
    optimizer=dict(lr=2e-4, weight_decay=0.1), paramwise_cfg=dict(layer_decay_rate=0.92)
)
train_dataloader = dict(batch_size=8, num_workers=8)
