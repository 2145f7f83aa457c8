"""Checkpoints of the published code, to mmvim's keys and back: pure functions on dicts."""

from mmvim.checkpoints.official import OfficialWeights, convert_official, to_official

__all__ = ['OfficialWeights', 'convert_official', 'to_official']
