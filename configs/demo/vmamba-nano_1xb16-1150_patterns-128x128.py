# Compared with in tools/demos/ablate.py: VMamba of two stages, about the cost of Vim-nano. A third
# would have maps of 8x8, too coarse for objects that fill a sixth of an image.
_base_ = './vim-nano_1xb16-1150_patterns-128x128.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvim.VMamba',
        arch=dict(dims=32, depths=(1, 3)),
        img_size=128,
        out_indices=1,
        out_type='raw',
    ),
    head=dict(in_channels=64),
)
