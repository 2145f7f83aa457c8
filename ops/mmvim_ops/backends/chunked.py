"""The ops on the kernels of :mod:`mmvim_ops.pure_torch`: any device, and float64."""

from __future__ import annotations

from torch import Tensor

from mmvim_ops.backends.operators import OperatorBackend
from mmvim_ops.library import PURE_TORCH
from mmvim_ops.pure_torch.chunk_scan import chunk_length

__all__ = ['CHUNKED']


class Chunked(OperatorBackend):
    """Operators whose kernels are pure torch on every device."""

    name = 'chunked'
    note = 'pure torch, any device; what auto takes without native kernels'

    def chunk_length(self, x: Tensor, states: int, directions: int, saves: bool) -> int:
        """See :meth:`OperatorBackend.chunk_length`: as many as a buffer holds."""
        batch, length, channels = x.shape
        return chunk_length(batch, length, directions * channels, states, x.device)


CHUNKED = Chunked(PURE_TORCH)
