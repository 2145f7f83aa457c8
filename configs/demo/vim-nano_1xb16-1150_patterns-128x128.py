# The demo of classification: Vim-nano on single objects of the patterns dataset. An object fills a
# sixth of its image: the head reads every token, and the greatest score of each class counts.
_base_ = [
    '../_base_/models/classifier_vim.py',
    '../_base_/datasets/patterns_cls.py',
    '../_base_/schedules/patterns_1150.py',
]
model = dict(
    backbone=dict(arch='nano', img_size=128, patch_size=8, cls_token='none', out_type='raw'),
    head=dict(
        type='mmvim.MaxPoolClsHead',
        num_classes=8,
        in_channels=64,
        loss=dict(_delete_=True, type='CrossEntropyLoss'),
    ),
    train_cfg=None,
)
