"""The CUDA kernels that serve blocks of a Vim alone, emulated on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from mmvim_ops_by_name import bidirectional
from torch import Tensor

Inputs = Callable[..., dict[str, Tensor]]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Beside tiles of 64 and 32 tokens and chunks of 128 of them.
LENGTHS = [1, 2, 31, 33, 63, 64, 65, 127, 128, 129, 191, 192, 193, 257]
FORWARD_SPLITS, BACKWARD_SPLITS = (4, 8, 16), (8, 16)


@pytest.fixture
def compare(
    value_and_grads: Any, assert_close: Any, emulated: Any
) -> Callable[[dict[str, Tensor], tuple[int, int]], None]:
    """Values and gradients with the float64 reference's."""

    def ran(vim: bool) -> list[int]:
        passes = b'ScanForward', b'ScanBackward'
        return [emulated.c.mmvim_emulation_ran(name, vim) for name in passes]

    def check(inputs: dict[str, Tensor], *splits: tuple[int, int], vim: bool = True) -> None:
        ran(True), ran(False)
        scan = partial(bidirectional, scale=0.7)
        exact = {name: tensor.double() for name, tensor in inputs.items()}
        expected = value_and_grads(scan, exact, backend='reference')
        for split in splits:
            emulated.force_splits(*split)
            actual = value_and_grads(scan, inputs, backend='cpu')
            assert_close(actual, expected, where=f'split {split}')
            if split == (0, 0):  # the rule's, which counts tokens that are not there
                continue
            assert ran(vim) == [1, 1], f'kernels for Vim alone: {ran(not vim)} of split {split}'

    return check


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('L', LENGTHS)
def test_values_and_gradients(
    L: int, dtype: torch.dtype, bidirectional_inputs: Inputs, compare: Any
) -> None:
    """Blocks of channels that are full, and a last one that is not."""
    B, E, R = (2, 24, 4) if L % 2 else (1, 40, 12)
    inputs = bidirectional_inputs(B=B, L=L, E=E, N=16, R=R, dtype=dtype)
    compare(inputs, (4, 8), (8, 16), (16, 8), (0, 0))


@pytest.mark.parametrize('R', [4, 8, 16, 20, 24, 48, 64])
def test_ranks(R: int, bidirectional_inputs: Inputs, compare: Any) -> None:
    """Of dt_proj, beyond what a thread reads ahead too."""
    inputs = bidirectional_inputs(B=1, L=100, E=16, N=16, R=R, dtype=torch.bfloat16)
    compare(inputs, (8, 8), (16, 16))


def test_rows_of_eight_bytes(bidirectional_inputs: Inputs, compare: Any) -> None:
    """Are enough for the four channels of a block."""
    inputs = bidirectional_inputs(B=2, L=70, E=20, N=16, R=4, dtype=torch.bfloat16)
    compare(inputs, (16, 16))


@pytest.mark.parametrize('chunk', [64, 128, 192, 4096])
def test_chunks(chunk: int, bidirectional_inputs: Inputs, compare: Any, emulated: Any) -> None:
    emulated.use_chunk(chunk)
    for L in (63, 64, 130, 192, 200, 321):
        inputs = bidirectional_inputs(B=1, L=L, E=8, N=16, R=4, dtype=torch.float32)
        compare(inputs, (8, 8))


@pytest.mark.parametrize(
    ('name', 'change'),
    [
        ('rank', dict(R=5)),
        ('rows that are not aligned', dict(E=21)),
    ],
)
def test_what_they_do_not_serve(
    name: str, change: dict[str, int], bidirectional_inputs: Inputs, compare: Any
) -> None:
    """Goes to the general kernels and is as right."""
    inputs = bidirectional_inputs(**(dict(B=2, L=70, E=24, N=16, R=4) | change), dtype=DTYPES[1])
    compare(inputs, *product(FORWARD_SPLITS, BACKWARD_SPLITS), vim=False)
