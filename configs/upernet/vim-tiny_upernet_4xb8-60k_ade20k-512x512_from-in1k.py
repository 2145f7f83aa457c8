# UperNet on Vim-Ti from a classifier of ImageNet: its head, class token and final norm are left out
# and named in the log, its position embedding is resized from 14x14 to 32x32 patches.
_base_ = './vim-tiny_upernet_4xb8-60k_ade20k-512x512.py'
model = dict(
    backbone=dict(
        init_cfg=dict(
            type='mmvim.PretrainedVim',
            # Published (.pth as released) or converted.
            checkpoint='checkpoints/vim-tiny.pth',
            cls_token='middle',
        ),
    ),
)
