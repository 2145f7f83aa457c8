# The paper's ablation of directions, the same as the published code runs it: the blocks of a pair
# start from one input, their outputs and streams are summed.
_base_ = './vim-tiny-mean-pool_8xb128-300e_in1k.py'
model = dict(backbone=dict(direction='block_published'))
