# VMamba-T (s1l8), Mask R-CNN, COCO, 12 epochs: 47.3 / 42.7 box / mask AP (paper). The published recipe with
# one difference: its optimiser also decayed Ds, biases and the norms of the patch embedding and of
# downsampling.
_base_ = [
    '../_base_/models/mask-rcnn_vmamba.py',
    'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/schedules/vmamba_1x.py',
]
model = dict(
    backbone=dict(
        arch='tiny_s1l8',
        drop_path_rate=0.2,
        # init_cfg=dict(type='mmvim.PretrainedVMamba', checkpoint='…'),
    ),
)
