"""Checkpoints of the published code: to mmvim's keys and back, and into a backbone."""

from mmvim.checkpoints.keys import BackboneWeights
from mmvim.checkpoints.pretrained import PretrainedVim, PretrainedVMamba
from mmvim.checkpoints.reading import load_checkpoint_file, read_weights
from mmvim.checkpoints.strict import load_start, load_strictly
from mmvim.checkpoints.vim import convert_official, to_official
from mmvim.checkpoints.vmamba import convert_vmamba, to_vmamba

__all__ = [
    'BackboneWeights',
    'PretrainedVMamba',
    'PretrainedVim',
    'convert_official',
    'convert_vmamba',
    'load_checkpoint_file',
    'load_start',
    'load_strictly',
    'read_weights',
    'to_official',
    'to_vmamba',
]
