# Compared with in tools/demos/ablate.py: mmpretrain's ViT of Vim-nano's width, depth and patches.
_base_ = './vim-nano_1xb16-1150_patterns-128x128.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='VisionTransformer',
        arch=dict(embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=256),
        img_size=128,
        patch_size=8,
        with_cls_token=False,
        out_type='raw',
    ),
)
