"""Values and gradients of the CUDA kernels, emulated on the CPU, against the float64 reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from mmvim_ops_by_name import bidirectional
from torch import Tensor

import mmvim_ops

Inputs = Callable[..., dict[str, Tensor]]
Tools = tuple[Any, Any, Any]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LENGTHS = [1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 197, 1025, 4097]
# L, E, N, B, R and groups: lengths beside tiles and chunks, channels beside the 4 to 64 of a block,
# the states that kernels are compiled for and others.
SIZES = [
    (1, 5, 16, 3, 1, 1),
    (2, 33, 16, 1, 3, 3),
    (31, 70, 4, 1, 12, 2),
    (32, 33, 16, 3, 48, 1),
    (33, 1, 16, 1, 12, 1),
    (63, 70, 16, 1, 12, 5),
    (64, 33, 32, 3, 1, 3),
    (65, 70, 16, 1, 3, 1),
    (127, 5, 8, 1, 48, 5),
    (128, 33, 16, 3, 12, 1),
    (129, 70, 16, 1, 12, 2),
    (197, 33, 16, 3, 12, 3),
    (197, 33, 5, 1, 12, 1),
    (1025, 33, 16, 1, 3, 1),
]
FORWARD_SPLITS, BACKWARD_SPLITS = (1, 2, 4, 8, 16), (4, 8, 16)
# Every split once, the last with those of the rule.
SPLITS = [(1, 4), (2, 8), (4, 16), (8, 4), (16, 8), (0, 0)]


@pytest.fixture
def tools(value_and_grads: Any, assert_close: Any, emulated: Any) -> Tools:
    return value_and_grads, assert_close, emulated


def splits_for(N: int) -> list[tuple[int, int]]:
    """Only 16 states, and a single one, have kernels that differ by their split."""
    return {1: [(1, 1), (8, 8)], 16: SPLITS}.get(N, [(0, 0)])


def compare(
    function: Callable[..., Any],
    inputs: dict[str, Tensor],
    tools: Tools,
    splits: list[tuple[int, int]],
    exactly: str = 'reference',
) -> None:
    """Values and all gradients of kernels that split a channel among so many threads."""
    value_and_grads, assert_close, emulated = tools
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    expected = value_and_grads(function, exact, backend=exactly)
    lead = next(iter(inputs.values()))
    for split in splits:
        emulated.force_splits(*split)
        actual = value_and_grads(function, inputs, backend='cpu')
        assert actual['out'].dtype == lead.dtype
        for name, tensor in inputs.items():
            assert actual[f'grad of {name}'].dtype == tensor.dtype
        E = lead.shape[2]
        assert_close(actual, expected, channels=E, where=f'split {split}')


def quick_sizes() -> Iterator[Any]:
    """All of them in float32, the short ones in each half-precision dtype."""
    for dtype, size in product(DTYPES, SIZES):
        if dtype == torch.float32 or size[0] < 200:
            name = str(dtype).removeprefix('torch.')
            yield pytest.param(dtype, *size, id='-'.join(map(str, (name, *size))))


sizes = pytest.mark.parametrize(('dtype', 'L', 'E', 'N', 'B', 'R', 'groups'), list(quick_sizes()))


@sizes
def test_bidirectional(
    dtype: torch.dtype,
    L: int,
    E: int,
    N: int,
    B: int,
    R: int,
    groups: int,
    bidirectional_inputs: Inputs,
    tools: Tools,
) -> None:
    inputs = bidirectional_inputs(B=B, L=L, E=E, N=N, R=R, dtype=dtype)
    scan = partial(bidirectional, scale=0.7)
    compare(scan, inputs, tools, splits_for(N))


@sizes
def test_selective_scan(
    dtype: torch.dtype,
    L: int,
    E: int,
    N: int,
    B: int,
    R: int,
    groups: int,
    scan_inputs: Inputs,
    tools: Tools,
) -> None:
    """The last state and its gradient too; a direction for each length."""
    inputs = scan_inputs(B=B, L=L, E=E, N=N, groups=groups, dtype=dtype)
    scan = partial(
        mmvim_ops.selective_scan,
        **dict(delta_softplus=True, groups=groups, reverse=L % 2 > 0, return_last_state=True),
    )
    compare(scan, inputs, tools, splits_for(N))


@pytest.mark.parametrize('N', [1, 3, 16, 17])
@pytest.mark.parametrize('tiles', range(1, 10))
def test_directions_meet(tiles: int, N: int, bidirectional_inputs: Inputs, tools: Tools) -> None:
    """In the middle of an odd number of tiles, or between two; the last tile full or not."""
    for missing in (0, 1, 31):
        inputs = bidirectional_inputs(
            B=1, L=32 * tiles - missing, E=5, N=N, R=5, dtype=torch.float32
        )
        compare(bidirectional, inputs, tools, splits_for(N))


@pytest.mark.parametrize('chunk', [32, 64, 96, 128, 160, 4096, 333])
def test_chunks(
    chunk: int, scan_inputs: Inputs, bidirectional_inputs: Inputs, tools: Tools
) -> None:
    """Chunks of one tile and of more, beyond the last token and exactly to it."""
    tools[2].use_chunk(chunk)
    generic = partial(mmvim_ops.selective_scan, delta_softplus=True, return_last_state=True)
    for L in (32, 96, 160, 161, 192, 257, 320, 333):
        if chunk % 32 and chunk < L:
            continue
        splits = [(1, 4), (8, 16)]
        one = scan_inputs(B=1, L=L, E=9, N=16, dtype=torch.float32)
        compare(partial(generic, reverse=L % 2 > 0), one, tools, splits)
        both = bidirectional_inputs(B=1, L=L, E=9, N=16, dtype=torch.float32)
        compare(bidirectional, both, tools, splits)


RANKS = {4: 1, 5: 4, 8: 3, 16: 12, 17: 127, 32: 48}


def all_sizes() -> Iterator[Any]:
    """Every length and number of states; every batch size in float32, one of each half-precision.

    The two longest are in half precision with 16 states alone.
    """
    batch_sizes = {torch.float32: (1, 3), torch.bfloat16: (1,), torch.float16: (3,)}
    for L, N, B, dtype in product(LENGTHS, RANKS, (1, 3), DTYPES):
        if B in batch_sizes[dtype] and (L < 1000 or N == 16 or dtype == torch.float32):
            name = str(dtype).removeprefix('torch.')
            yield pytest.param(dtype, L, N, B, id=f'{name}-{L}-{N}-{B}')


every_size = pytest.mark.parametrize(('dtype', 'L', 'N', 'B'), list(all_sizes()))


def channels(L: int, B: int) -> int:
    """Several blocks where the loops are short."""
    return {1: 70, 3: 33 if L < 1000 else 5}[B]


def all_splits(L: int, N: int) -> list[tuple[int, int]]:
    """Every forward with every backward kernel, where the loops are short."""
    return list(product(FORWARD_SPLITS, BACKWARD_SPLITS)) if N == 16 and L < 200 else splits_for(N)


def exactly(L: int) -> str:
    """The token loop takes seconds for thousands of tokens; test_sweep.py compares the two."""
    return 'reference' if L < 1000 else 'chunked'


@pytest.mark.slow
@every_size
def test_all_bidirectional(
    dtype: torch.dtype, L: int, N: int, B: int, bidirectional_inputs: Inputs, tools: Tools
) -> None:
    inputs = bidirectional_inputs(B=B, L=L, E=channels(L, B), N=N, R=RANKS[N], dtype=dtype)
    compare(bidirectional, inputs, tools, all_splits(L, N), exactly(L))


@pytest.mark.slow
@every_size
def test_all_selective_scans(
    dtype: torch.dtype, L: int, N: int, B: int, scan_inputs: Inputs, tools: Tools
) -> None:
    groups = {1: 5, 3: 1}[B]
    inputs = scan_inputs(B=B, L=L, E=channels(L, B), N=N, groups=groups, dtype=dtype)
    scan = partial(
        mmvim_ops.selective_scan,
        **dict(delta_softplus=True, groups=groups, reverse=B == 3, return_last_state=True),
    )
    compare(scan, inputs, tools, all_splits(L, N), exactly(L))
