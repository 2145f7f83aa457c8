# Vim-S, ImageNet-1K: 80.5 top-1 (paper), fp32. The published recipe with the difference named for
# Vim-Ti.
_base_ = './vim-tiny_8xb128-300e_in1k.py'
model = dict(
    backbone=dict(arch='small', drop_path_rate=0.05),
    head=dict(in_channels=384),
)
train_dataloader = dict(batch_size=64)
# The same rate for half the batch, as published.
optim_wrapper = dict(optimizer=dict(weight_decay=0.05))
auto_scale_lr = dict(base_batch_size=512)
