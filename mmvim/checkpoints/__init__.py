"""Checkpoints of the published code: to mmvim's keys and back, and into a backbone."""

from mmvim.checkpoints.pretrained import PretrainedVim
from mmvim.checkpoints.reading import load_checkpoint_file, read_weights
from mmvim.checkpoints.strict import load_start, load_strictly
from mmvim.checkpoints.vim import BackboneWeights, convert_official, to_official

__all__ = [
    'BackboneWeights',
    'PretrainedVim',
    'convert_official',
    'load_checkpoint_file',
    'load_start',
    'load_strictly',
    'read_weights',
    'to_official',
]
