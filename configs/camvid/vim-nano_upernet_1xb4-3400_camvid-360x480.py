# UperNet on Vim-nano, patches of 8 pixels, CamVid from scratch.
_base_ = [
    '../_base_/models/upernet_vim.py',
    '../_base_/datasets/camvid.py',
    'mmseg::_base_/default_runtime.py',
]
norm_cfg = dict(type='BN', requires_grad=True)
channels = 48
batch_size, crop_size = 4, (256, 320)
# Rare classes weigh more: 1 / ln(1.02 + share of the labelled training pixels) (Paszke et al., ENet, Sec.
# 5.1), with a geometric mean of 1. The sum over the pixels is divided by their number: mmseg's mean cannot look
# up the weight of a label to ignore.
loss = dict(
    class_weight=[0.38, 0.29, 2.26, 0.22, 1.04, 0.59, 2.12, 2.15, 0.86, 2.55, 2.95],
    reduction='sum',
    loss_weight=1.0 / (batch_size * crop_size[0] * crop_size[1]),
)
model = dict(
    # Of the training images.
    data_preprocessor=dict(
        size=crop_size, mean=[104.98, 108.35, 110.24], std=[78.22, 79.41, 78.25]
    ),
    backbone=dict(
        arch='nano',
        img_size=(360, 480),
        patch_size=8,
        out_indices=[0, 1, 2, 3],
        drop_path_rate=0.0,
    ),
    # The finest map has a stride of 4 pixels, half a patch.
    neck=dict(embed_dim=64, rescales=[2, 1, 0.5, 0.25], norm_cfg=norm_cfg),
    decode_head=dict(
        in_channels=[64, 64, 64, 64],
        channels=channels,
        num_classes=11,
        norm_cfg=norm_cfg,
        loss_decode=loss,
    ),
    auxiliary_head=dict(
        in_channels=64,
        channels=channels,
        in_index=1,
        num_classes=11,
        norm_cfg=norm_cfg,
        loss_decode=dict(loss, loss_weight=0.4 * loss['loss_weight']),
    ),
    test_cfg=dict(_delete_=True, mode='whole'),
)
# One CPU core, which loads its own images.
train_dataloader = dict(batch_size=batch_size, num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
max_iters = 3400
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, betas=(0.9, 0.999), weight_decay=0.05),
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
    dict(type='PolyLR', power=0.9, eta_min=1e-5, by_epoch=False, begin=50, end=max_iters),
]
# The scope in which the data sets are built, also where a config derives from this one by `mmvim::`.
train_cfg = dict(
    _scope_='mmseg', type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters
)
val_cfg = dict(_scope_='mmseg', type='ValLoop')
test_cfg = dict(_scope_='mmseg', type='TestLoop')
custom_hooks = [dict(type='mmvim.StrictCheckpointHook')]
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=20, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=200, max_keep_ckpts=1),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='mmseg.SegVisualizationHook'),
)
# One process.
auto_scale_lr = dict(enable=False, base_batch_size=4)
randomness = dict(seed=0)
