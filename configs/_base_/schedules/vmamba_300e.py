# The published ImageNet-1K schedule of VMamba: 300 epochs of AdamW in mixed precision, linear
# warm-up, cosine decay, an average of the weights beside them.
_base_ = ['../mmvim.py', 'mmpretrain::_base_/default_runtime.py']
optim_wrapper = dict(
    # float16 with a loss scale that adapts, as published.
    type='AmpOptimWrapper',
    loss_scale='dynamic',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
    # No layer-wise decay; A_logs, Ds, biases (those of dt too) and norms are kept from weight decay.
    constructor='mmvim.LayerDecayOptimWrapperConstructor',
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, begin=0, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, begin=20, end=300, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()
# Factor 0.9999 on the average. What is validated and tested is the average.
custom_hooks = [
    dict(type='mmvim.StrictCheckpointHook'),
    dict(type='EMAHook', momentum=1e-4, priority='ABOVE_NORMAL'),
]
default_hooks = dict(checkpoint=dict(save_best='accuracy/top1', max_keep_ckpts=2))
auto_scale_lr = dict(enable=False, base_batch_size=1024)
