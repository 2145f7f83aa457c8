# The published ImageNet-1K schedule: 300 epochs of AdamW, linear warm-up, cosine decay, an average
# of the weights beside them.
_base_ = ['../mmvim.py', 'mmpretrain::_base_/default_runtime.py']
optim_wrapper = dict(
    # fp32, as published.
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1),
    # No layer-wise decay; A_log, D, biases, norms, position and class tokens are kept from weight
    # decay.
    constructor='mmvim.LayerDecayOptimWrapperConstructor',
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, begin=5, end=300),
]
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()
# Factor 0.99996 on the average. What is validated and tested is the average.
custom_hooks = [
    dict(type='mmvim.StrictCheckpointHook'),
    dict(type='EMAHook', momentum=4e-5, priority='ABOVE_NORMAL'),
]
default_hooks = dict(checkpoint=dict(save_best='accuracy/top1', max_keep_ckpts=2))
auto_scale_lr = dict(enable=False, base_batch_size=1024)
