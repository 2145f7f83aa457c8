# A linear classifier of VMamba's last map, as published: norm, mean over the positions, one layer.
_base_ = '../mmvim.py'
# Registers the backbone, also under mmpretrain's own tools.
custom_imports = dict(imports=['mmvim'], allow_failed_imports=False)
model = dict(
    # Whose types these are, also in a config that derives from this one by `mmvim::`.
    _scope_='mmpretrain',
    type='ImageClassifier',
    backbone=dict(
        type='mmvim.VMamba',
        arch='tiny_s1l8',
        img_size=224,
        out_indices=3,
        out_norm='last',
        out_type='avg_featmap',
        drop_path_rate=0.2,
    ),
    neck=None,
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=768,
        # Published: truncated normal, bias 0.
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
    # One of the two for every batch, either as likely.
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
