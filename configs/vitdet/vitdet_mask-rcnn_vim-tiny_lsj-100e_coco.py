# Vim-Ti, ViTDet's Mask R-CNN, COCO: the published recipe (the paper's figures are those of Cascade
# Mask R-CNN) with two differences: no rotary embedding, which the published runs had and no
# released checkpoint has, and no weight decay of A_log, D, biases and norms. ..._rope.py has both
# as they were.
_base_ = [
    '../_base_/models/mask-rcnn_vitdet_vim.py',
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
