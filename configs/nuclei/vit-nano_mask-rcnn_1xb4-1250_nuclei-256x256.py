# Compared with: mmpretrain's ViT of the same width, depth and patches; pyramid, heads and all else
# are the same. Its attention never holds all pairs of tokens, which the largest images have 8e9 of.
_base_ = './vim-nano_mask-rcnn_1xb4-1600_nuclei-256x256.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.VisionTransformer',
        arch=dict(embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=256),
        img_size=256,
        patch_size=8,
        out_type='featmap',
        with_cls_token=False,
        final_norm=False,
    ),
)
# As many iterations as Vim-nano's 1,600 take minutes of a core with AVX-512.
max_iters = 1250
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=50, end=max_iters),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
