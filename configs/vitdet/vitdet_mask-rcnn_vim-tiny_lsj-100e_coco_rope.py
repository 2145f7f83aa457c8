# Vim-Ti, ViTDet's Mask R-CNN, COCO, as published: rotary embedding of hidden and residual stream,
# weight decay of everything but position embedding and layer norms. The checkpoint that run started
# from was not released.
_base_ = './vitdet_mask-rcnn_vim-tiny_lsj-100e_coco.py'
model = dict(backbone=dict(rope='both'))
optim_wrapper = dict(paramwise_cfg=dict(as_published='detection'))
