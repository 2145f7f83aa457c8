# The paper's ablation of directions: forward only.
_base_ = './vim-tiny-mean-pool_8xb128-300e_in1k.py'
model = dict(backbone=dict(direction='none'))
