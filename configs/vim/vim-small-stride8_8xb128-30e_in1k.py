# Vim-S fine-tuned with patches every 8 pixels: 81.6 top-1 (paper), fp32; as Vim-Ti.
_base_ = './vim-tiny-stride8_8xb128-30e_in1k.py'
load_from = 'checkpoints/vim-small.pth'
model = dict(backbone=dict(arch='small'), head=dict(in_channels=384))
