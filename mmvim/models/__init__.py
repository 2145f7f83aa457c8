"""Modules of the models: the backbone, its layers, the pyramid, a head."""

from mmvim.models.backbones import VisionMamba
from mmvim.models.heads import MaxPoolClsHead
from mmvim.models.layers import LN2d, VimBlock, VimMixer
from mmvim.models.necks import SimpleFPN

__all__ = ['LN2d', 'MaxPoolClsHead', 'SimpleFPN', 'VimBlock', 'VimMixer', 'VisionMamba']
