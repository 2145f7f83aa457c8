# The paper's ablation of classification designs: no class token, the head reads the mean of all
# tokens. The base of the ablation of directions, whose default has this figure too.
_base_ = './vim-tiny_8xb128-300e_in1k.py'
model = dict(backbone=dict(cls_token='none', out_type='avg_featmap'))
