# The paper's ablation of directions: blocks scan forward and backward in turns.
_base_ = './vim-tiny-mean-pool_8xb128-300e_in1k.py'
model = dict(backbone=dict(direction='block'))
