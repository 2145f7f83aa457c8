# The same with the position embedding as it was loaded and resized: it does not train.
_base_ = './vim-tiny_upernet_4xb8-60k_ade20k-512x512_from-in1k.py'
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'backbone.pos_embed': dict(lr_mult=0.0, decay_mult=0.0)}),
)
