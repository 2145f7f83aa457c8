# Vim-B, UperNet, ADE20K in mixed precision. The published runs were fp32. bfloat16 has fp32's
# range, so the loss needs no scaling.
_base_ = './vim-base_upernet_4xb8-60k_ade20k-512x512.py'
optim_wrapper = dict(type='AmpOptimWrapper', dtype='bfloat16', loss_scale=dict(enabled=False))
