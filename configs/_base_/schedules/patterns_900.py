# A few minutes on two CPU cores.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=3e-3, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
    paramwise_cfg=dict(
        flat_decay_mult=0.0,
        custom_keys={
            'pos_embed': dict(decay_mult=0.0),
            'A_log': dict(decay_mult=0.0),
            'A_b_log': dict(decay_mult=0.0),
        },
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=50, end=900),
]
# The scope in which the data sets are built, also where a config derives from this one by `mmvim::`.
train_cfg = dict(_scope_='mmseg', type='IterBasedTrainLoop', max_iters=900, val_interval=225)
val_cfg = dict(_scope_='mmseg', type='ValLoop')
test_cfg = dict(_scope_='mmseg', type='TestLoop')
# Loading is loud, under the libraries' own tools too.
custom_hooks = [dict(type='mmvim.StrictCheckpointHook')]
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=20, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=225, max_keep_ckpts=1),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='mmseg.SegVisualizationHook'),
)
# One process.
auto_scale_lr = dict(enable=False, base_batch_size=8)
randomness = dict(seed=0)
