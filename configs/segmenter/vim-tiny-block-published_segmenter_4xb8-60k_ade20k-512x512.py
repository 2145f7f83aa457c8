# The paper's ablation of directions, the block variant as the published code runs it: pairs of
# blocks on the same input, one forward and one backward, their outputs and streams summed, so
# that the residual stream doubles per pair.
_base_ = './vim-tiny-ssm-conv_segmenter_4xb8-60k_ade20k-512x512.py'
model = dict(
    backbone=dict(
        direction='block_published',
        # A checkpoint pretrained in this direction; none was released.
        # init_cfg=dict(type='mmvim.PretrainedVim', checkpoint='…', cls_token='middle'),
    )
)
