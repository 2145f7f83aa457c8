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
