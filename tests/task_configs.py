"""Tiny stock configs of the three libraries, with data for two."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

SEGMENTATION = """
default_scope = 'mmseg'
data_root = 'scenes'
norm_cfg = dict(type='BN', requires_grad=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(32, 32), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
tta_model = dict(type='SegTTAModel')
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='TestTimeAug', transforms=[
        [dict(type='Resize', scale_factor=factor, keep_ratio=True) for factor in (1.0, 1.75)],
        [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
        [dict(type='LoadAnnotations')],
        [dict(type='PackSegInputs')]]),
]
metainfo = dict(
    classes=('sky', 'sea', 'sand'), palette=[[0, 0, 255], [0, 255, 0], [255, 0, 0]])
dataset = dict(
    type='BaseSegDataset', data_root=data_root, metainfo=metainfo, img_suffix='.png',
    data_prefix=dict(img_path='images', seg_map_path='labels'), pipeline=train_pipeline)
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dataset)
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(dataset, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[127.0] * 3, std=[60.0] * 3, bgr_to_rgb=True,
        pad_val=0, seg_pad_val=255, size=(32, 32), test_cfg=dict(size_divisor=32)),
    backbone=dict(
        type='ResNet', depth=18, base_channels=8, num_stages=2, strides=(1, 2), dilations=(1, 1),
        out_indices=(1,), norm_cfg=norm_cfg),
    decode_head=dict(
        type='FCNHead', in_channels=16, channels=8, num_convs=1, in_index=0, num_classes=3,
        norm_cfg=norm_cfg, loss_decode=dict(type='CrossEntropyLoss')),
    test_cfg=dict(mode='whole'))
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
param_scheduler = [dict(type='PolyLR', power=1.0, begin=0, end=2, by_epoch=False)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1),
    visualization=dict(type='SegVisualizationHook'))
visualizer = dict(type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
env_cfg = dict(dist_cfg=dict(backend='nccl'))
auto_scale_lr = dict(enable=False, base_batch_size=16)
randomness = dict(seed=0)
"""

DETECTION = """
default_scope = 'mmdet'
norm_cfg = dict(type='BN', requires_grad=False)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=(
        'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
dataset = dict(
    type='CocoDataset', data_root='coco', ann_file='instances.json',
    data_prefix=dict(img='images/'), metainfo=dict(
        classes=('box', 'bar'), palette=[(220, 20, 60), (0, 90, 220)]),
    pipeline=train_pipeline)
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dataset)
test_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(dataset, pipeline=test_pipeline, test_mode=True))
test_evaluator = dict(
    type='CocoMetric', ann_file='coco/instances.json', metric=['bbox', 'segm'])
model = dict(
    type='MaskRCNN',
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[127.0] * 3, std=[60.0] * 3, bgr_to_rgb=True,
        pad_mask=True, pad_size_divisor=32),
    backbone=dict(
        type='ResNet', depth=18, base_channels=8, num_stages=2, strides=(1, 2), dilations=(1, 1),
        out_indices=(0, 1), frozen_stages=-1, norm_cfg=norm_cfg),
    neck=dict(type='FPN', in_channels=[8, 16], out_channels=8, num_outs=3),
    rpn_head=dict(
        type='RPNHead', in_channels=8, feat_channels=8,
        anchor_generator=dict(
            type='AnchorGenerator', scales=[4], ratios=[1.0], strides=[4, 8, 16])),
    roi_head=dict(
        type='StandardRoIHead',
        bbox_roi_extractor=dict(
            type='SingleRoIExtractor', roi_layer=dict(type='RoIAlign', output_size=7),
            out_channels=8, featmap_strides=[4, 8]),
        bbox_head=dict(
            type='Shared2FCBBoxHead', in_channels=8, fc_out_channels=8, num_classes=2,
            bbox_coder=dict(
                type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4,
                target_stds=[0.1, 0.1, 0.2, 0.2])),
        mask_roi_extractor=dict(
            type='SingleRoIExtractor', roi_layer=dict(type='RoIAlign', output_size=14),
            out_channels=8, featmap_strides=[4, 8]),
        mask_head=dict(
            type='FCNMaskHead', num_convs=1, in_channels=8, conv_out_channels=8,
            num_classes=2)),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(
                type='MaxIoUAssigner', pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3),
            sampler=dict(type='RandomSampler', num=16, pos_fraction=0.5),
            allowed_border=-1, pos_weight=-1, debug=False),
        rpn_proposal=dict(
            nms_pre=50, max_per_img=20, nms=dict(type='nms', iou_threshold=0.7),
            min_bbox_size=0),
        rcnn=dict(
            assigner=dict(
                type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5),
            sampler=dict(type='RandomSampler', num=16, pos_fraction=0.25),
            mask_size=28, pos_weight=-1, debug=False)),
    test_cfg=dict(
        rpn=dict(
            nms_pre=50, max_per_img=20, nms=dict(type='nms', iou_threshold=0.7),
            min_bbox_size=0),
        rcnn=dict(
            score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=5,
            mask_thr_binary=0.5)))
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1e-3))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', interval=1),
    visualization=dict(type='DetVisualizationHook'))
visualizer = dict(type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
randomness = dict(seed=0)
"""

CLASSIFICATION = """
default_scope = 'mmpretrain'
data_preprocessor = dict(num_classes=2, mean=[127.0] * 3, std=[60.0] * 3, to_rgb=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=32),
    dict(type='CenterCrop', crop_size=32),
    dict(type='PackInputs'),
]
test_pipeline = train_pipeline
dataset = dict(
    type='CustomDataset', data_root='folders', data_prefix='', with_label=True,
    metainfo=dict(classes=('dark', 'light')), pipeline=train_pipeline)
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dataset)
test_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dataset)
test_evaluator = dict(type='Accuracy', topk=(1,))
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='ResNet', depth=18, base_channels=8, stem_channels=8, num_stages=2, strides=(1, 2),
        dilations=(1, 1), out_indices=(1,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead', num_classes=2, in_channels=16, topk=(1,),
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0)))
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', interval=1),
    visualization=dict(type='VisualizationHook'))
visualizer = dict(
    type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
randomness = dict(seed=0)
"""


def write_coco(root: Path, count: int = 3) -> None:
    """``images/*.png`` of 48 × 64 with one bright rectangle each, and ``instances.json``."""
    rng = np.random.default_rng(0)
    (root / 'images').mkdir(parents=True)
    images, annotations = [], []
    for index in range(count):
        pixels = rng.integers(0, 80, (48, 64, 3), dtype=np.uint8)
        x, y, width, height = 8 + 4 * index, 10, 24, 16
        pixels[y : y + height, x : x + width] = 230
        Image.fromarray(pixels).save(root / 'images' / f'{index}.png')
        images.append(dict(id=index, file_name=f'{index}.png', height=48, width=64))
        corners = [x, y, x + width, y, x + width, y + height, x, y + height]
        annotations.append(
            dict(
                id=index + 1,
                image_id=index,
                category_id=1 + index % 2,
                bbox=[x, y, width, height],
                area=width * height,
                iscrowd=0,
                segmentation=[corners],
            )
        )
    categories = [dict(id=1, name='box'), dict(id=2, name='bar')]
    held = dict(images=images, annotations=annotations, categories=categories)
    (root / 'instances.json').write_text(json.dumps(held))


def write_folders(root: Path, count: int = 2) -> None:
    """``dark/*.png`` and ``light/*.png`` of 40 × 36."""
    rng = np.random.default_rng(0)
    for name, base in (('dark', 0), ('light', 150)):
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = base + rng.integers(0, 100, (36, 40, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f'{name}{index}.png')
