# Vim-Ti, UperNet, ADE20K: 41.0 mIoU (paper), fp32. The published recipe with layer-wise decay put
# right: there every block trained at the full learning rate, because the code looked for
# `backbone.blocks` and the modules are `backbone.layers`; position embedding and A_log decayed.
# ..._as-published.py has that optimiser.
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
        arch='tiny',
        # As published for this size: the taps are the bare mixer outputs.
        tap='mixer',
        # init_cfg=dict(type='mmvim.PretrainedVim', checkpoint='…', cls_token='middle'),
    ),
)
optim_wrapper = dict(
    optimizer=dict(lr=2e-4, weight_decay=0.1), paramwise_cfg=dict(layer_decay_rate=0.92)
)
train_dataloader = dict(batch_size=8, num_workers=8)
