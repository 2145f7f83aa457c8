# mmdet's Mask R-CNN with FPN on VMamba's four maps.
_base_ = ['../mmvim.py', 'mmdet::_base_/models/mask-rcnn_r50_fpn.py']
# Registers the backbone, also under mmdet's own tools.
custom_imports = dict(imports=['mmvim'], allow_failed_imports=False)
model = dict(
    backbone=dict(_delete_=True, type='mmvim.VMamba', arch='tiny_s1l8', drop_path_rate=0.2),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
