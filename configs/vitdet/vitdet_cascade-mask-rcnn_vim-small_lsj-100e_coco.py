# Vim-S, ViTDet's Cascade Mask R-CNN, COCO. The published configs have this size, the paper no
# figure.
_base_ = './vitdet_cascade-mask-rcnn_vim-tiny_lsj-100e_coco.py'
model = dict(
    backbone=dict(
        arch='small',
        # init_cfg=dict(type='mmvim.PretrainedVim', checkpoint='…', cls_token='middle'),
    ),
    neck=dict(in_channels=384),
)
