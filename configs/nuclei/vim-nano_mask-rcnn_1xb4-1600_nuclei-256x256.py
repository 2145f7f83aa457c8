# Mask R-CNN in the form of ViTDet on Vim-nano, patches of 8 pixels, nuclei, from scratch. Pyramid
# and heads are those of the COCO configs, narrower.
_base_ = [
    '../_base_/models/mask-rcnn_vitdet_vim.py',
    '../_base_/datasets/nuclei.py',
    'mmdet::_base_/default_runtime.py',
]
channels = 64
# Images are doubled, so that the finest map has a cell for every 2x2 pixels of theirs. Anchors of
# 16 to 128 pixels are 8 to 64 there; half of the nuclei are shorter than 24.
strides = [4, 8, 16, 32]
rois = dict(out_channels=channels, featmap_strides=strides[:3], finest_scale=28)
model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(arch='nano', img_size=256, patch_size=8, drop_path_rate=0.0),
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
        num_convs=1,
        anchor_generator=dict(scales=[4], ratios=[0.6, 1.0, 1.67], strides=strides),
    ),
    roi_head=dict(
        bbox_roi_extractor=rois,
        bbox_head=dict(
            in_channels=channels,
            conv_out_channels=channels,
            fc_out_channels=256,
            num_classes=1,
        ),
        mask_roi_extractor=rois,
        mask_head=dict(
            num_convs=2, in_channels=channels, conv_out_channels=channels, num_classes=1
        ),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=600, max_per_img=300),
        rcnn=dict(sampler=dict(num=96)),
    ),
    # An image holds up to 375 nuclei.
    test_cfg=dict(
        rpn=dict(nms_pre=1000, max_per_img=1000),
        rcnn=dict(max_per_img=500),
    ),
)
visualizer = dict(type='mmvim.OutlineVisualizer')
# One CPU core, which loads its own images.
train_dataloader = dict(num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
max_iters = 1600
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
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
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=50, end=max_iters),
]
# The scope in which the data sets are built, also where a config derives from this one by `mmvim::`.
train_cfg = dict(
    _scope_='mmdet', type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters
)
val_cfg = dict(_scope_='mmdet', type='ValLoop')
test_cfg = dict(_scope_='mmdet', type='TestLoop')
custom_hooks = [dict(type='mmvim.StrictCheckpointHook')]
default_hooks = dict(
    logger=dict(interval=20, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=100, max_keep_ckpts=1),
)
log_processor = dict(by_epoch=False)
# One process.
auto_scale_lr = dict(enable=False, base_batch_size=4)
randomness = dict(seed=0)
