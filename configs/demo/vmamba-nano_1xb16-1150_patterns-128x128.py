# Compared with in tools/demos/ablate.py: VMamba's first three stages, about the cost of Vim-nano.
_base_ = './vim-nano_1xb16-1150_patterns-128x128.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvim.VMamba',
        arch='nano',
        img_size=128,
        out_indices=2,
        out_type='raw',
    ),
    head=dict(in_channels=128),
)
