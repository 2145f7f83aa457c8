"""Checkpoints of the published code: to mmvim's keys and back, and into a backbone."""

from mmvim.checkpoints.files import read_weights
from mmvim.checkpoints.pretrained import PretrainedVim
from mmvim.checkpoints.vim import OfficialWeights, convert_official, to_official

__all__ = ['OfficialWeights', 'PretrainedVim', 'convert_official', 'read_weights', 'to_official']
