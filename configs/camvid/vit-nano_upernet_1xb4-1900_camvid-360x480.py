# Compared with: mmpretrain's ViT of the same width, depth, patches and taps; neck, heads and all
# else are the same.
_base_ = './vim-nano_upernet_1xb4-3400_camvid-360x480.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.VisionTransformer',
        arch=dict(embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=256),
        img_size=(360, 480),
        patch_size=8,
        out_indices=[0, 1, 2, 3],
        out_type='featmap',
        with_cls_token=False,
        final_norm=False,
    ),
)
# As many iterations as Vim-nano's 3,400 take minutes of a core with AVX-512.
max_iters = 1900
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', power=0.9, eta_min=1e-5, by_epoch=False, begin=50, end=max_iters),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
