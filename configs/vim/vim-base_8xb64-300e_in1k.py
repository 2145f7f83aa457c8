# Vim-B, ImageNet-1K: 81.9 top-1 (paper). Its recipe was not published: this is the one of Vim-S.
_base_ = './vim-small_8xb64-300e_in1k.py'
model = dict(backbone=dict(arch='base'), head=dict(in_channels=768))
