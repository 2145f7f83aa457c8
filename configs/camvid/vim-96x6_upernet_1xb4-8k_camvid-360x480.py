# The long run: Vim of width 96 with 6 blocks, more than twice the iterations, averaged weights.
_base_ = './vim-nano_upernet_1xb4-3400_camvid-360x480.py'
channels = 96
# Square roots of the short runs' weights: trained long enough, every class is found, and the full
# weights have rare classes predicted too often.
class_weight = [0.62, 0.54, 1.5, 0.47, 1.02, 0.77, 1.46, 1.47, 0.93, 1.6, 1.72]
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=channels, num_layers=6),
        out_indices=[1, 2, 3, 5],
        drop_path_rate=0.1,
    ),
    neck=dict(embed_dim=channels),
    decode_head=dict(in_channels=[channels] * 4, loss_decode=dict(class_weight=class_weight)),
    auxiliary_head=dict(in_channels=channels, loss_decode=dict(class_weight=class_weight)),
)
max_iters = 8000
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='PolyLR', power=0.9, eta_min=1e-5, by_epoch=False, begin=100, end=max_iters),
]
train_cfg = dict(max_iters=max_iters, val_interval=2000)
custom_hooks = [
    dict(type='mmvim.StrictCheckpointHook'),
    # Averaged over a twentieth of the iterations so far, 400 at the end.
    dict(type='EMAHook', ema_type='MomentumAnnealingEMA', momentum=0.0025, gamma=20),
]
