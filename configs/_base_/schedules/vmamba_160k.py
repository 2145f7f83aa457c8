# The published ADE20K schedule of VMamba, Swin's: 160k iterations of 16 images, linear warm-up,
# linear decay to 0, fp32, one learning rate for all layers.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    # A_logs, Ds, biases and norms are kept from weight decay.
    constructor='mmvim.LayerDecayOptimWrapperConstructor',
)
# The decay runs from the first iteration, under the warm-up too, as in the published code (mmcv 1).
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=0, end=160000, by_epoch=False),
]
# The scope in which the data sets are built, also where a config derives from this one by `mmvim::`.
train_cfg = dict(_scope_='mmseg', type='IterBasedTrainLoop', max_iters=160000, val_interval=16000)
val_cfg = dict(_scope_='mmseg', type='ValLoop')
test_cfg = dict(_scope_='mmseg', type='TestLoop')
# Loading is loud, under the libraries' own tools too.
custom_hooks = [dict(type='mmvim.StrictCheckpointHook')]
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='CheckpointHook', by_epoch=False, interval=16000, save_best='mIoU', max_keep_ckpts=2
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='mmseg.SegVisualizationHook'),
)
# 8 GPUs with 2 images each.
auto_scale_lr = dict(enable=False, base_batch_size=16)
