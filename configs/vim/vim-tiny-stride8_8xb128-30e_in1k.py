# Vim-Ti fine-tuned with patches every 8 pixels, 730 tokens an image: 78.3 top-1 (paper), fp32.
# Head and backbone start from the same checkpoint; its position embedding is resized to 27x27
# patches with every row in its place (the published code took row 0 for the class token's).
_base_ = './vim-tiny_8xb128-300e_in1k.py'
# A converted checkpoint of 16-pixel strides, with its head. Without it nothing starts; it has to fit
# to the last key.
load_from = 'checkpoints/vim-tiny.pth'
model = dict(backbone=dict(patch_stride=8))
optim_wrapper = dict(optimizer=dict(lr=1e-5, weight_decay=1e-8))
# The rate is constant: as published, 5e-6 scaled by 1024 / 512, with 1e-5 as the rate of the
# warm-up and the least rate of the cosine.
param_scheduler = None
train_cfg = dict(max_epochs=30)
custom_hooks = [
    dict(type='EMAHook', momentum=4e-5, priority='ABOVE_NORMAL'),
    dict(type='mmvim.StrictCheckpointHook', exact=True),
]
