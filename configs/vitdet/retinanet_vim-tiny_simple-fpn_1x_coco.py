# mmdet's RetinaNet, Vim-Ti in the place of ResNet-50 and its simple feature pyramid in that of FPN.
_base_ = ['../_base_/mmvim.py', 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py']
custom_imports = dict(imports=['mmvim'], allow_failed_imports=False)
custom_hooks = [dict(type='mmvim.StrictCheckpointHook')]
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvim.VisionMamba',
        arch='tiny',
        img_size=1024,
        cls_token='none',
        out_indices=-1,
        out_norm='none',
        drop_path_rate=0.1,
        # init_cfg=dict(type='mmvim.PretrainedVim', checkpoint='…', cls_token='middle'),
    ),
    # Levels of stride 8, 16 and 32 have weights, 64 and 128 are pooled.
    neck=dict(
        _delete_=True,
        type='mmvim.SimpleFPN',
        in_channels=192,
        out_channels=256,
        out_strides=(8, 16, 32),
        num_outs=5,
    ),
)
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),
    constructor='mmvim.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.837),
)
