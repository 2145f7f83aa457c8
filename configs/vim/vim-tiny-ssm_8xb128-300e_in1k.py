# The paper's ablation of directions: a backward scan beside the forward one, both over the output
# of one convolution, summed.
_base_ = './vim-tiny-mean-pool_8xb128-300e_in1k.py'
model = dict(backbone=dict(direction='ssm'))
