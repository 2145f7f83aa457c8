# The demo of detection: ViTDet's Mask R-CNN on Vim-nano, patches of 8 pixels, patterns dataset.
# Heads and pyramid are those of the COCO configs, narrower; so are the numbers of proposals.
_base_ = [
    '../_base_/models/mask-rcnn_vitdet_vim.py',
    '../_base_/datasets/patterns_det.py',
    'mmdet::_base_/default_runtime.py',
]
channels = 64
strides = [4, 8, 16, 32]
# Objects are 20 to 100 pixels wide.
rois = dict(
    out_channels=channels,
    featmap_strides=strides[:3],
    finest_scale=24,
)
custom_hooks = [dict(type='mmvim.StrictCheckpointHook')]
model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(
        arch='nano',
        img_size=128,
        patch_size=8,
        drop_path_rate=0.0,
        # The backbone that `make demo` trained.
        init_cfg=dict(
            type='mmvim.PretrainedVim',
            checkpoint='work_dirs/demo/vim-nano/train/iter_900.pth',
            cls_token='none',
        ),
    ),
    neck=dict(
        in_channels=64,
        out_channels=channels,
        patch_stride=8,
        out_strides=strides[:3],
        num_outs=4,
    ),
    rpn_head=dict(
        in_channels=channels,
        feat_channels=channels,
        anchor_generator=dict(scales=[4], strides=strides),
    ),
    roi_head=dict(
        bbox_roi_extractor=rois,
        bbox_head=dict(
            in_channels=channels,
            conv_out_channels=channels,
            fc_out_channels=256,
            num_classes=8,
        ),
        mask_roi_extractor=rois,
        mask_head=dict(
            num_convs=2, in_channels=channels, conv_out_channels=channels, num_classes=8
        ),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=300, max_per_img=100),
        rcnn=dict(sampler=dict(num=48)),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=300, max_per_img=100),
        rcnn=dict(max_per_img=20),
    ),
)
# A few minutes on two CPU cores; blocks that are trained already learn more slowly.
max_iters = 600
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
    constructor='mmvim.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.8),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=50, end=max_iters),
]
# The scope in which the data sets are built, also where a config derives from this one by `mmvim::`.
train_cfg = dict(_scope_='mmdet', type='IterBasedTrainLoop', max_iters=max_iters, val_interval=150)
val_cfg = dict(_scope_='mmdet', type='ValLoop')
test_cfg = dict(_scope_='mmdet', type='TestLoop')
default_hooks = dict(
    logger=dict(interval=20, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=150, max_keep_ckpts=1),
)
log_processor = dict(by_epoch=False)
# One process.
auto_scale_lr = dict(enable=False, base_batch_size=8)
randomness = dict(seed=0)
