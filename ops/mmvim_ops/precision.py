"""Which dtype the arithmetic of a scan runs in, and the guard that keeps autocast out of it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from itertools import filterfalse

import torch
from torch import Tensor

__all__ = ['full_precision', 'wide', 'wide_dtype']

# Devices on which torch.autocast raises. Asked here and not in a call, because torch 2.10 cannot
# compile the question.
_KINDS = ('cpu', 'cuda', 'meta', 'mps', 'xpu', 'xla', 'mtia', 'vulkan', 'lazy')
_WITHOUT_AUTOCAST = frozenset(filterfalse(torch.amp.is_autocast_available, _KINDS))


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def wide(tensor: Tensor) -> Tensor:
    """The tensor in its arithmetic dtype."""
    return tensor.to(wide_dtype(tensor.dtype))


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A context without autocast, which would run the matrix products of a scan in half precision.

    The state of a scan is a sum over thousands of tokens: in half precision it overflows or stalls.
    """
    kind = device.type
    if kind in _WITHOUT_AUTOCAST or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)
