# ImageNet-1K as DeiT and Vim train on it: RandAugment (m9, mstd0.5, increasing), random erasing of
# a quarter of the images, tested on the middle 224 of 256 pixels, all mmpretrain's. Every image
# comes three times in a row, differently augmented and to different processes, of a third of the
# images an epoch.
_base_ = ['../mmvim.py', 'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py']
# 8 GPUs with as many images each.
train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    drop_last=True,
    sampler=dict(_delete_=True, type='mmpretrain.RepeatAugSampler', num_repeats=3, shuffle=True),
)
val_dataloader = dict(batch_size=128, num_workers=8)
test_dataloader = val_dataloader
