# Mask R-CNN in the form of ViTDet on Vision Mamba: the last map alone, the simple feature pyramid,
# two convolutions in the RPN, four convolutions and a linear layer in the box head, layer norms in
# pyramid and heads. What is not named here is mmdet's.
_base_ = ['../mmvim.py', 'mmdet::_base_/models/mask-rcnn_r50_fpn.py']
# Registers backbone, neck and norm, also under mmdet's own tools.
custom_imports = dict(imports=['mmvim'], allow_failed_imports=False)
norm_cfg = dict(type='mmvim.LN2d', eps=1e-6)
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvim.VisionMamba',
        arch='tiny',
        img_size=1024,
        # Dense models run without a class token, whatever the checkpoint had.
        cls_token='none',
        # Hidden + residual after the last block, without the final norm.
        out_indices=-1,
        tap='residual',
        out_norm='none',
        # The released weights were trained without; the published detectors had rope='both'.
        rope='none',
        drop_path_rate=0.1,
    ),
    neck=dict(
        _delete_=True,
        type='mmvim.SimpleFPN',
        in_channels=192,
        out_channels=256,
        num_outs=5,
        norm_cfg=norm_cfg,
    ),
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=dict(
            type='Shared4Conv1FCBBoxHead',
            conv_out_channels=256,
            norm_cfg=norm_cfg,
        ),
        mask_head=dict(norm_cfg=norm_cfg),
    ),
)
