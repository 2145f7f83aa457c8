"""All lengths, states and batch sizes together, on all implementations: one reference for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from mmvim_ops_by_name import bidirectional
from torch import Tensor

import mmvim_ops

Inputs = Callable[..., dict[str, Tensor]]
pytestmark = pytest.mark.slow
LENGTHS = [1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 197, 1025, 4097]
RANKS = {4: 1, 8: 3, 16: 12, 32: 48}


def compare(
    function: Callable[..., Tensor], inputs: dict[str, Tensor], tools: tuple[Any, Any, Any]
) -> None:
    """Values and all gradients against those of the reference in float64.

    The token loop takes seconds for thousands of tokens: the chunked implementation, which single
    precision compares with it, stands in for it in half precision.
    """
    value_and_grads, assert_close, each_kernels = tools
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    half = any(tensor.dtype == torch.bfloat16 for tensor in inputs.values())
    expected = value_and_grads(function, exact, backend='chunked' if half else 'reference')
    if not half:
        assert_close(value_and_grads(function, exact, backend='chunked'), expected, where='double')
    actual = value_and_grads(function, inputs, backend='chunked')
    assert_close(actual, expected, where='chunked')
    for kernels in each_kernels:
        actual = value_and_grads(function, kernels.place(inputs), backend=kernels.backend)
        assert_close(actual, expected, where=kernels.name)


sizes = pytest.mark.parametrize('L', LENGTHS)
states = pytest.mark.parametrize('N', list(RANKS))
dtypes = pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=['single', 'half'])


def channels(L: int, B: int) -> int:
    """No multiple of 16; several blocks where the token loop is short."""
    return {1: 35, 3: 100 if L < 1000 else 20}[B]


@dtypes
@sizes
@states
@pytest.mark.parametrize('B', [1, 3])
def test_bidirectional(
    dtype: torch.dtype,
    L: int,
    N: int,
    B: int,
    bidirectional_inputs: Inputs,
    value_and_grads: Inputs,
    assert_close: Any,
    each_kernels: Iterator[Any],
) -> None:
    inputs = bidirectional_inputs(B=B, L=L, E=channels(L, B), N=N, R=RANKS[N], dtype=dtype)
    tools = (value_and_grads, assert_close, each_kernels)
    compare(bidirectional, inputs, tools)


@dtypes
@sizes
@states
@pytest.mark.parametrize(('B', 'groups'), [(1, 5), (3, 1)])
def test_selective_scan(
    dtype: torch.dtype,
    L: int,
    N: int,
    B: int,
    groups: int,
    scan_inputs: Inputs,
    value_and_grads: Inputs,
    assert_close: Any,
    each_kernels: Iterator[Any],
) -> None:
    inputs = scan_inputs(B=B, L=L, E=channels(L, B), N=N, groups=groups, dtype=dtype)
    options = dict(delta_softplus=True, reverse=B == 3, groups=groups)
    tools = (value_and_grads, assert_close, each_kernels)
    compare(partial(mmvim_ops.selective_scan, **options), inputs, tools)
