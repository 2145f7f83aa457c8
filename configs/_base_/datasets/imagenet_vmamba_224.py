# ImageNet-1K as VMamba trains on it: RandAugment (m9, mstd0.5, increasing), random erasing of a
# quarter of the images, tested on the middle 224 of 256 pixels, all mmpretrain's.
_base_ = ['../mmvim.py', 'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py']
# 8 GPUs with as many images each.
train_dataloader = dict(batch_size=128, num_workers=8, drop_last=True)
val_dataloader = dict(batch_size=128, num_workers=8)
test_dataloader = val_dataloader
