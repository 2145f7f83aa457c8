# Vim-Ti, ViTDet's Cascade Mask R-CNN, COCO: 45.7 box and 39.2 mask AP (paper). The published recipe
# with two differences: no rotary embedding, which the published run had and no released checkpoint
# has, and no weight decay of A_log, D, biases and norms. ..._rope.py has both as they were.
_base_ = [
    '../_base_/models/cascade-mask-rcnn_vitdet_vim.py',
    '../_base_/datasets/coco_lsj_1024.py',
    '../_base_/schedules/vitdet_100e.py',
]
model = dict(
    # Training and test images are padded to 1024x1024, the grid of the position embedding.
    data_preprocessor=dict(pad_size_divisor=1024),
    backbone=dict(
        arch='tiny',
        # init_cfg=dict(type='mmvim.PretrainedVim', checkpoint='…', cls_token='middle'),
    ),
)
