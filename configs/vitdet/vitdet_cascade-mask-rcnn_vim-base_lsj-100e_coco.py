# Vim-B, ViTDet's Cascade Mask R-CNN, COCO. The published configs have this size, the paper no
# figure.
_base_ = './vitdet_cascade-mask-rcnn_vim-tiny_lsj-100e_coco.py'
model = dict(
    backbone=dict(
        arch='base',
        # init_cfg=dict(type='mmvim.PretrainedVim', checkpoint='…', cls_token='middle'),
    ),
    neck=dict(in_channels=768),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.7))
