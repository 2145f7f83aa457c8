# VMamba-S (s2l15), Mask R-CNN, COCO, 36 epochs of images of many sizes and crops: 49.9 / 44.2 box / mask AP
# (paper). Otherwise the recipe of 12 epochs.
_base_ = './vmamba-tiny-s1l8_mask-rcnn_8xb2-ms-crop-3x_coco.py'
model = dict(backbone=dict(arch='small_s2l15', drop_path_rate=0.3))
