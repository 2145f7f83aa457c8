"""Building blocks of Vision Mamba, plain torch modules."""

from mmvim.models.layers.norm import LN2d, build_norm
from mmvim.models.layers.vim_block import VimBlock
from mmvim.models.layers.vim_mixer import VimMixer

__all__ = ['LN2d', 'VimBlock', 'VimMixer', 'build_norm']
