"""The ops of two directions, their tensors by flat names: what tests loop over and differentiate.

``_f`` and ``_b`` end the names of a direction's tensors, as in the operators' schemas.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import mmvim_ops
from mmvim_ops import MixerWeights, ScanInputs, loading

SCAN = ('x', 'dbl', 'dt_w', 'dt_b', 'A', 'D')  # in the order of ScanInputs
MIXER = ('w', 'b', 'x_w', 'dt_w', 'dt_b', 'A', 'D')  # in the order of MixerWeights
SCAN_NAMES = [f'{name}_{direction}' for name in SCAN for direction in 'fb']
_FIELDS = dict(zip(SCAN, ScanInputs._fields)) | dict(zip(MIXER, MixerWeights._fields))
MIXER_NAMES = [f'{name}_{direction}' for name in MIXER for direction in 'fb']
# The compiled kernels are not there in pure-Python installations, which are tested too.
needs_native = pytest.mark.skipif(
    loading.problem() is not None, reason=f'no native library: {loading.problem()}'
)


def unchanged(actual: Tensor, expected: Tensor, backend: str) -> bool:
    """Whether two results of a float32 computation are one and the same.

    The last bit of torch's own matrix products depends on where their operands lie on some
    processors, so of the backend 'chunked' all but that is compared.
    """
    if backend != 'chunked' or expected.dtype != torch.float32:
        return torch.equal(actual, expected)
    return bool((actual - expected).abs().max() <= 1e-7 * expected.abs().max())


def called(name: str) -> str:
    """What messages call a tensor."""
    field, _, direction = name.rpartition('_')
    side = {'f': 'forward', 'b': 'reverse'}.get(direction)
    return name if field not in _FIELDS or side is None else f'{side}.{_FIELDS[field]}'


def directions(tensors: dict[str, Any]) -> tuple[ScanInputs, ScanInputs]:
    """Both directions of a scan, taken out of ``tensors``."""
    forward, reverse = ([tensors.pop(f'{name}_{d}') for name in SCAN] for d in 'fb')
    return ScanInputs(*forward), ScanInputs(*reverse)


def bidirectional(*tensors: Tensor, op: Any = None, **others: Any) -> Tensor:
    """``bidirectional_selective_scan`` of named tensors and options, or of them in order."""
    others = dict(zip([*SCAN_NAMES, 'z'], tensors)) | others
    forward, reverse = directions(others)
    out: Tensor = (op or mmvim_ops.bidirectional_selective_scan)(forward, reverse, **others)
    return out


def inner(x: Tensor, z: Tensor, **others: Any) -> Tensor:
    """``vim_inner`` of named tensors and options; a bias may be absent."""
    others = {'b_f': None, 'b_b': None} | others
    forward, reverse = ([others.pop(f'{name}_{d}') for name in MIXER] for d in 'fb')
    return mmvim_ops.vim_inner(x, z, MixerWeights(*forward), MixerWeights(*reverse), **others)


class Ops:
    """All ops of a backend."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.selective_scan = partial(mmvim_ops.selective_scan, backend=backend)
        self.conv1d_silu = partial(mmvim_ops.conv1d_silu, backend=backend)
        self.bidirectional = partial(bidirectional, backend=backend)

    def __repr__(self) -> str:
        return self.backend
