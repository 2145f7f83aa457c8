# The paper's ablation of classification designs: one class token comes first, another last; they
# are averaged.
_base_ = './vim-tiny_8xb128-300e_in1k.py'
model = dict(backbone=dict(cls_token='double'))
