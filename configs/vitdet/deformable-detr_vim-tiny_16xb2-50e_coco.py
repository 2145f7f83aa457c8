# mmdet's Deformable DETR with Vim-Ti in the place of ResNet-50. ChannelMapper takes the one map of
# stride 16 and makes three more of it by strided convolutions: 32, 64 and 128.
_base_ = ['../_base_/mmvim.py', 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py']
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
    neck=dict(in_channels=[192]),
)
# Layer-wise decay instead of a tenth of the rate for the whole backbone; the rest is mmdet's.
optim_wrapper = dict(
    constructor='mmvim.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        _delete_=True,
        layer_decay_rate=0.837,
        custom_keys=dict(
            sampling_offsets=dict(lr_mult=0.1),
            reference_points=dict(lr_mult=0.1),
        ),
    ),
)
