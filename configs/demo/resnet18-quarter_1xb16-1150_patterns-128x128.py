# Compared with in tools/demos/ablate.py: mmpretrain's ResNet-18 of a quarter of its width.
_base_ = './vim-nano_1xb16-1150_patterns-128x128.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=18,
        stem_channels=16,
        base_channels=16,
    ),
    head=dict(in_channels=128),
)
# This ResNet does not tell the depth of its parameters, which mmvim's constructor asks for. What
# decays is the same: no parameter of one dimension.
optim_wrapper = dict(
    constructor='DefaultOptimWrapperConstructor',
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
)
