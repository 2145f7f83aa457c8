# The paper's ablation of classification designs: no class token, the head reads every token, the
# greatest score of each class counts.
_base_ = './vim-tiny_8xb128-300e_in1k.py'
model = dict(
    backbone=dict(cls_token='none', out_type='raw'), head=dict(type='mmvim.MaxPoolClsHead')
)
