# The published optimiser, which decays all that its list of names leaves: Ds, A_logs, biases and the
# norms that are called by a number there (patch embedding, downsampling).
_base_ = './vmamba-tiny-s1l8_upernet_8xb2-160k_ade20k-512x512.py'
decayed = dict(decay_mult=1.0)
optim_wrapper = dict(
    paramwise_cfg=dict(
        flat_decay_mult=1.0,
        custom_keys={
            'norm': dict(decay_mult=0.0),
            'patch_embed': decayed,
            'downsample': decayed,
            'A_logs': decayed,
            'dt_projs_bias': decayed,
        },
    ),
)
