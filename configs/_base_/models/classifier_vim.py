# A linear classifier of Vision Mamba's class token, as published: the final norm runs over the whole
# sequence, one linear layer reads the token of the middle.
_base_ = '../mmvim.py'
# Registers the backbone, also under mmpretrain's own tools.
custom_imports = dict(imports=['mmvim'], allow_failed_imports=False)
model = dict(
    # Whose types these are, also in a config that derives from this one by `mmvim::`.
    _scope_='mmpretrain',
    type='ImageClassifier',
    backbone=dict(
        type='mmvim.VisionMamba',
        arch='tiny',
        img_size=224,
        direction='ssm_conv',
        cls_token='middle',
        out_type='cls_token',
        drop_path_rate=0.0,
    ),
    neck=None,
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=192,
        # Published: truncated normal, bias 0.
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
    # One of the two for every batch, either as likely.
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
