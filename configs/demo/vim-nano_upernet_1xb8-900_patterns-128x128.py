# The demo: UperNet on Vim-nano, patches of 8 pixels, patterns dataset.
_base_ = [
    '../_base_/models/upernet_vim.py',
    '../_base_/datasets/patterns_seg.py',
    'mmseg::_base_/default_runtime.py',
    '../_base_/schedules/patterns_900.py',
]
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(
        arch='nano',
        img_size=128,
        patch_size=8,
        out_indices=[0, 1, 2, 3],
        drop_path_rate=0.0,
    ),
    # Patches of 8 pixels start one level finer than patches of 16.
    neck=dict(embed_dim=64, rescales=[2, 1, 0.5, 0.25]),
    decode_head=dict(in_channels=[64, 64, 64, 64], channels=32, num_classes=9),
    auxiliary_head=dict(in_channels=64, channels=32, num_classes=9),
    test_cfg=dict(_delete_=True, mode='whole'),
)
