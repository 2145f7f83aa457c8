# Nuclei as tools/dataset_converters/nuclei.py writes them: 451 training, 91 validation and 122 test
# images of 256 to 1388 pixels. Nuclei are small (half of them below 24 pixels), so that images are
# doubled.
dataset_type = 'mmvim.NucleiDataset'
data_root = 'data/nuclei/'
crop_size = (256, 256)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    # Enlarged 2.5, 2, 1.5 times or not at all. Cropped first: an image has up to 375 masks, which
    # cost more to enlarge than a step of training.
    dict(
        type='RandomChoice',
        transforms=[
            [dict(type='mmdet.RandomCrop', crop_size=(side, side), recompute_bbox=True)]
            for side in (104, 128, 176, 256)
        ],
    ),
    dict(type='Resize', scale=crop_size, keep_ratio=True),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(2, 2)),
    dict(type='RandomFlip', prob=0.75, direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    # One's own pictures may be grey, of 16 bits or with alpha.
    dict(type='LoadImageFromFile', color_type='unchanged'),
    dict(type='mmvim.To8BitBGR'),
    dict(type='Resize', scale_factor=2.0),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        _scope_='mmdet',
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=2),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        _scope_='mmdet',
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
# An image holds up to 375 nuclei. Of mmdet's figures, bbox_mAP and segm_mAP count the 100 best
# detections of an image, whatever proposal_nums says (pycocotools fixes it); mAP_50, mAP_75 and
# those by size count the last of proposal_nums, 1,000. So does nucleus_precision, which classwise
# adds: the mask AP, as segm comes last (the log has a table for boxes too). The detector has to
# keep as many: test_cfg.rcnn.max_per_img.
val_evaluator = dict(
    type='mmdet.CocoMetric',
    ann_file=data_root + 'annotations/instances_val.json',
    metric=['bbox', 'segm'],
    classwise=True,
)
test_evaluator = val_evaluator
