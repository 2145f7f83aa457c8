# mmdet's Mask2Former for instances, Vim-Ti and its simple feature pyramid in the place of ResNet-50.
_base_ = ['../_base_/mmvim.py', 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py']
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
    neck=dict(
        type='mmvim.SimpleFPN',
        in_channels=192,
        out_channels=256,
        num_outs=4,
    ),
    panoptic_head=dict(in_channels=[256, 256, 256, 256]),
)
# Layer-wise decay instead of a tenth of the rate for the whole backbone; the rest is mmdet's.
embed_multi = dict(lr_mult=1.0, decay_mult=0.0)
optim_wrapper = dict(
    constructor='mmvim.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        _delete_=True,
        layer_decay_rate=0.837,
        custom_keys=dict(
            query_embed=embed_multi,
            query_feat=embed_multi,
            level_embed=embed_multi,
        ),
    ),
)
