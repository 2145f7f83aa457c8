# A small classifier in a few minutes on two CPU cores.
_base_ = ['../mmvim.py', 'mmpretrain::_base_/default_runtime.py']
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
    constructor='mmvim.LayerDecayOptimWrapperConstructor',
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=50, end=1150),
]
# The scope in which the data sets are built, also where a config derives from this one by `mmvim::`.
train_cfg = dict(_scope_='mmpretrain', type='IterBasedTrainLoop', max_iters=1150, val_interval=230)
val_cfg = dict(_scope_='mmpretrain', type='ValLoop')
test_cfg = dict(_scope_='mmpretrain', type='TestLoop')
# Loading is loud, under the libraries' own tools too.
custom_hooks = [dict(type='mmvim.StrictCheckpointHook')]
default_hooks = dict(
    logger=dict(interval=20, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=230, max_keep_ckpts=1),
)
log_processor = dict(by_epoch=False)
# One process.
auto_scale_lr = dict(enable=False, base_batch_size=16)
randomness = dict(seed=0)
