# The published COCO schedule: 100 epochs as 184,375 iterations of 64 images, mixed precision,
# linear warm-up, two steps down, layer-wise decay of the learning rate.
_base_ = ['../mmvim.py', 'mmdet::_base_/default_runtime.py']
max_iters = 184375
optim_wrapper = dict(
    # float16 with a loss scale that adapts, as published.
    type='AmpOptimWrapper',
    loss_scale='dynamic',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),
    # Block i of 24 learns at decay^(24 - i) of the rate; A_log, D, biases, norms and position
    # embedding are kept from weight decay. as_published='detection' decays what that code did.
    constructor='mmvim.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.837),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=250),
    dict(
        type='MultiStepLR',
        by_epoch=False,
        begin=0,
        end=max_iters,
        milestones=[163889, 177546],
        gamma=0.1,
    ),
]
# The scope in which the data sets are built, also where a config derives from this one by `mmvim::`.
train_cfg = dict(_scope_='mmdet', type='IterBasedTrainLoop', max_iters=max_iters, val_interval=5000)
val_cfg = dict(_scope_='mmdet', type='ValLoop')
test_cfg = dict(_scope_='mmdet', type='TestLoop')
# Loading is loud, under the libraries' own tools too.
custom_hooks = [dict(type='mmvim.StrictCheckpointHook')]
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=5000, save_best='coco/bbox_mAP', max_keep_ckpts=2),
)
log_processor = dict(by_epoch=False)
auto_scale_lr = dict(enable=False, base_batch_size=64)
