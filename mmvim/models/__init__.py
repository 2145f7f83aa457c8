"""Modules of the models: the backbone, its layers, the pyramid, a head."""

from mmvim.models.backbones.vision_mamba import VisionMamba
from mmvim.models.heads.max_pool_cls_head import MaxPoolClsHead
from mmvim.models.layers.norm import LN2d
from mmvim.models.layers.vim_block import VimBlock
from mmvim.models.layers.vim_mixer import VimMixer
from mmvim.models.necks.simple_fpn import SimpleFPN

__all__ = ['LN2d', 'MaxPoolClsHead', 'SimpleFPN', 'VimBlock', 'VimMixer', 'VisionMamba']
