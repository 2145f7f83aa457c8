# What the demo compares with: mmseg's ViT of the same width, depth, patches, taps, neck, heads,
# data and schedule.
_base_ = './vim-nano_upernet_1xb8-900_patterns-128x128.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='VisionTransformer',
        img_size=(128, 128),
        patch_size=8,
        in_channels=3,
        embed_dims=64,
        num_layers=4,
        num_heads=4,
        mlp_ratio=4,
        out_indices=(0, 1, 2, 3),
        with_cls_token=False,
        interpolate_mode='bicubic',
        norm_cfg=dict(type='LN', eps=1e-6, requires_grad=True),
    ),
)
