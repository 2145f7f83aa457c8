# Compared with: mmseg's ResNet-18 of half the width, which is a pyramid by itself; heads and all else
# are the same.
_base_ = './vim-nano_upernet_1xb4-3400_camvid-360x480.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=18,
        base_channels=32,
        norm_cfg=dict(type='BN', requires_grad=True),
    ),
    neck=None,
    decode_head=dict(in_channels=[32, 64, 128, 256]),
)
# As many iterations as Vim-nano's 3,400 take minutes of a core with AVX-512.
max_iters = 3200
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', power=0.9, eta_min=1e-5, by_epoch=False, begin=50, end=max_iters),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
