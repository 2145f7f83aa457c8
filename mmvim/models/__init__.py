"""Modules of the models: the backbones, their layers, the pyramid, a head."""

from mmvim.models.backbones.vision_mamba import VisionMamba
from mmvim.models.backbones.vmamba import VMamba
from mmvim.models.heads.max_pool_cls_head import MaxPoolClsHead
from mmvim.models.layers.norm import LN2d
from mmvim.models.layers.ss2d import SS2D
from mmvim.models.layers.vim_block import VimBlock
from mmvim.models.layers.vim_mixer import VimMixer
from mmvim.models.layers.vss_block import VSSBlock
from mmvim.models.necks.simple_fpn import SimpleFPN

__all__ = [
    'SS2D',
    'LN2d',
    'MaxPoolClsHead',
    'SimpleFPN',
    'VMamba',
    'VSSBlock',
    'VimBlock',
    'VimMixer',
    'VisionMamba',
]
