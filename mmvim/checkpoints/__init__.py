"""Checkpoints of the published code: to mmvim's keys and back, and into a backbone."""

from mmvim.checkpoints.files import read_weights
from mmvim.checkpoints.official import OfficialWeights, convert_official, to_official
from mmvim.checkpoints.pretrained import PretrainedVim

__all__ = ['OfficialWeights', 'PretrainedVim', 'convert_official', 'read_weights', 'to_official']
