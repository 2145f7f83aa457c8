"""Necks: from the maps of one stride that a plain backbone gives to a pyramid."""

from mmvim.models.necks.simple_fpn import SimpleFPN

__all__ = ['SimpleFPN']
