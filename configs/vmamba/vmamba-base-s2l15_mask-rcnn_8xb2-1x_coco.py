# VMamba-B (s2l15), Mask R-CNN, COCO, 12 epochs: 49.2 / 44.1 box / mask AP (paper). The published recipe with
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
        arch='base_s2l15',
        drop_path_rate=0.6,
        # init_cfg=dict(type='mmvim.PretrainedVMamba', checkpoint='…'),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
