# Segmenter on Vision Mamba: the normed last map and mmseg's mask transformer of two layers, the
# head of the paper's ablation (Sec. 4.4).
_base_ = '../mmvim.py'
# Registers the backbone, also under mmseg's own tools.
custom_imports = dict(imports=['mmvim'], allow_failed_imports=False)
data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255,
)
model = dict(
    # Whose types these are, also in a config that derives from this one by `mmvim::`.
    _scope_='mmseg',
    type='EncoderDecoder',
    data_preprocessor=data_preprocessor,
    pretrained=None,
    backbone=dict(
        type='mmvim.VisionMamba',
        arch='tiny',
        img_size=512,
        # Dense models run without a class token, whatever the checkpoint had.
        cls_token='none',
        out_indices=-1,
        out_norm='last',
        drop_path_rate=0.1,
    ),
    decode_head=dict(
        type='SegmenterMaskTransformerHead',
        in_channels=192,
        channels=192,
        num_classes=150,
        num_layers=2,
        num_heads=3,
        embed_dims=192,
        dropout_ratio=0.0,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)),
)
