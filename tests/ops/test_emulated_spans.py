"""Sums in a fixed order, of a span of tokens at a time: the same bits in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from mmvim_ops_by_name import bidirectional
from torch import Tensor

import mmvim_ops

Inputs = Callable[..., dict[str, Tensor]]
pytestmark = pytest.mark.usefixtures('deterministic')
# Less than any parts take: as much as a (B, L, E) tensor of float32 remains.
LEAST = dict(parts_bytes=1)
# Whose gradients no other channel or token adds to.
OWN = ('u', 'delta', 'x_f', 'x_b', 'z')


@pytest.fixture
def cases(scan_inputs: Inputs, bidirectional_inputs: Inputs) -> Callable[..., list[Any]]:
    """Both scans, both directions of the generic one, with channels for several blocks."""
    generic = partial(mmvim_ops.selective_scan, delta_softplus=True, return_last_state=True)

    def make(R: int = 12, **shape: Any) -> list[Any]:
        shape = dict(B=2, L=290, E=70, N=16, dtype=torch.float32) | shape
        grouped = scan_inputs(**{**shape, 'E': 2 * shape['E']}, groups=2)
        return [
            (generic, scan_inputs(**shape)),
            (partial(generic, reverse=True), scan_inputs(**shape)),
            (partial(generic, groups=2, reverse=True), grouped),
            (bidirectional, bidirectional_inputs(R=R, **shape)),
        ]

    return make


def largest_of(function: Callable[[], Any]) -> int:
    """Bytes of the largest tensor that is allocated meanwhile."""
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    return max(event.self_cpu_memory_usage for event in profile.events())


@pytest.mark.parametrize(
    ('N', 'dtype', 'splits', 'chunk'),
    [
        (16, torch.float32, (4, 8, 16), 32),
        (16, torch.bfloat16, (4, 8, 16), 96),
        (5, torch.float32, (0,), 128),
        (1, torch.float32, (1, 8), 32),
    ],
    ids=['16', '16-half', '5', '1'],
)
def test_spans_change_only_the_order_of_sums(
    N: int,
    dtype: torch.dtype,
    splits: tuple[int, ...],
    chunk: int,
    cases: Any,
    value_and_grads: Inputs,
    assert_close: Any,
    emulated: Any,
) -> None:
    """L is no multiple of a tile, chunks no divisor of L; E is, and is not, that of a Vim."""
    emulated.use_chunk(chunk)
    for E in (70, 136):
        for function, inputs in cases(N=N, E=E, dtype=dtype):
            exact = {name: tensor.double() for name, tensor in inputs.items()}
            expected = value_and_grads(function, exact, backend='chunked')
            for split in splits:
                emulated.force_splits(0, split)
                emulated.use_device()
                whole = value_and_grads(function, inputs, backend='cpu')
                emulated.use_device(**LEAST)
                spans = value_and_grads(function, inputs, backend='cpu')
                assert_close(spans, expected, where=(E, split))
                for name in (f'grad of {name}' for name in OWN if name in inputs):
                    assert torch.equal(spans[name], whole[name]), (E, split, name)
            again = value_and_grads(function, inputs, backend='cpu')
            for name, tensor in again.items():
                assert torch.equal(tensor, spans[name]), (E, name)


@pytest.mark.parametrize('L', [1, 31, 33, 64, 65, 127, 128, 129, 257])
def test_every_length(
    L: int, cases: Any, value_and_grads: Inputs, assert_close: Any, emulated: Any
) -> None:
    emulated.use_chunk(32)
    emulated.use_device(**LEAST)
    for function, inputs in cases(L=L):
        exact = {name: tensor.double() for name, tensor in inputs.items()}
        expected = value_and_grads(function, exact, backend='reference')
        assert_close(value_and_grads(function, inputs, backend='cpu'), expected)


def test_memory_is_bounded(cases: Any, value_and_grads: Inputs, emulated: Any) -> None:
    """By a (B, L, E) tensor of float32 where that is more than the device's share."""
    B, L, E, N = 2, 1024, 128, 16
    emulated.use_chunk(32)
    for function, inputs in cases(B=B, L=L, E=E, N=N)[::3]:
        run = partial(value_and_grads, function, inputs, backend='cpu')
        states = 4 * B * L * E * N
        for split, share in ((8, 8), (16, 4)):
            emulated.force_splits(0, split)
            emulated.use_device()
            parts = largest_of(run)
            assert parts >= states / share
            emulated.use_device(**LEAST)
            assert largest_of(run) <= 4 * B * L * E
            emulated.use_device(parts_bytes=parts)
            assert largest_of(run) <= max(parts // 2, 4 * B * L * E)  # B's and C's, or two dbl's
