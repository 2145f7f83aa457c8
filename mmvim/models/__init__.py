"""Modules of the models: the backbone and its layers."""

from mmvim.models.backbones import VisionMamba
from mmvim.models.layers import VimBlock, VimMixer

__all__ = ['VimBlock', 'VimMixer', 'VisionMamba']
