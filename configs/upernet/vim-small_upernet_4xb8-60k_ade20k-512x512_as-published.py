# Vim-S, UperNet, ADE20K as published: rotary embedding of hidden and residual stream, and the
# optimiser in which only patch and position embedding learn at a reduced rate (0.95^25). The
# checkpoint that run started from was not released. Not repeated: the misplaced rows of the
# position embedding (see vim-tiny).
_base_ = './vim-small_upernet_4xb8-60k_ade20k-512x512.py'
model = dict(backbone=dict(rope='both'))
optim_wrapper = dict(paramwise_cfg=dict(as_published='segmentation'))
