# Vim-Ti, ViTDet's Mask R-CNN, COCO, 12 epochs with the shorter side between 480 and 800: images
# of many sizes in one batch. A recipe of ours.
_base_ = [
    '../_base_/models/mask-rcnn_vitdet_vim.py',
    'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]
custom_hooks = [dict(type='mmvim.StrictCheckpointHook')]
model = dict(
    backbone=dict(
        arch='tiny',
        # The stored grid is square: images stand and lie.
        img_size=1024,
        # init_cfg=dict(type='mmvim.PretrainedVim', checkpoint='…', cls_token='middle'),
    ),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='RandomChoiceResize',
        scales=[(1333, side) for side in range(480, 801, 32)],
        keep_ratio=True,
    ),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),
    constructor='mmvim.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.837),
)
