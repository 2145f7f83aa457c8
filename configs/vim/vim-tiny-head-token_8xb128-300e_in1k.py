# The paper's ablation of classification designs: the class token comes first.
_base_ = './vim-tiny_8xb128-300e_in1k.py'
model = dict(backbone=dict(cls_token='head'))
