# Vim-Ti, ImageNet-1K: 76.1 top-1 (paper), fp32. The published recipe with one difference: timm's
# optimiser, which looks at dimensions and names, also decayed A_log, which the code marks as not to
# be decayed.
_base_ = [
    '../_base_/models/classifier_vim.py',
    '../_base_/datasets/imagenet_vim_224.py',
    '../_base_/schedules/vim_300e.py',
]
