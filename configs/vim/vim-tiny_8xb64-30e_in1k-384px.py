# Vim-Ti fine-tuned on images of 384x384, 577 tokens an image, from a checkpoint of 224x224, fp32. A
# recipe of ours: that of the published fine-tune of stride 8, on the augmentation of Swin's at 384.
_base_ = [
    '../_base_/models/classifier_vim.py',
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_384.py',
    '../_base_/schedules/vim_300e.py',
]
# A converted checkpoint with its head; its position embedding is resized to 24x24 patches. It has to
# fit to the last key.
load_from = 'checkpoints/vim-tiny.pth'
model = dict(backbone=dict(img_size=384))
optim_wrapper = dict(optimizer=dict(lr=1e-5, weight_decay=1e-8))
param_scheduler = None
train_cfg = dict(max_epochs=30)
custom_hooks = [
    dict(type='EMAHook', momentum=4e-5, priority='ABOVE_NORMAL'),
    dict(type='mmvim.StrictCheckpointHook', exact=True),
]
auto_scale_lr = dict(enable=False, base_batch_size=512)
