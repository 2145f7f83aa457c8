# The published COCO schedule of VMamba, Swin's: 12 epochs of 16 images, fp32, one learning rate for
# all layers.
_base_ = ['../mmvim.py', 'mmdet::_base_/schedules/schedule_1x.py']
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    # A_logs, Ds, biases and norms are kept from weight decay.
    constructor='mmvim.LayerDecayOptimWrapperConstructor',
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
]
# Loading is loud, under the libraries' own tools too.
custom_hooks = [dict(type='mmvim.StrictCheckpointHook')]
# 8 GPUs with 2 images each.
auto_scale_lr = dict(enable=False, base_batch_size=16)
