# The paper's ablation of directions: forward only, over a sequence that is flipped as a whole with
# probability 1/2 in training.
_base_ = './vim-tiny-ssm-conv_segmenter_4xb8-60k_ade20k-512x512.py'
model = dict(
    backbone=dict(
        direction='sequence',
        # A checkpoint pretrained in this direction; none was released.
        # init_cfg=dict(type='mmvim.PretrainedVim', checkpoint='…', cls_token='middle'),
    )
)
