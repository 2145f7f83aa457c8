"""What the emulation finds wrong with an algorithm, and that it finds nothing wrong with ours."""

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
# Threads of a phase forwards, backwards and shuffled; copies late and early.
ORDERS = [(order, early) for order in range(3) for early in (False, True)]


def neighbours(emulation: Any, fault: str = 'none') -> tuple[Tensor, str | None]:
    """Every thread gets its neighbour's number, and what the emulation complains of."""
    given = torch.arange(64.0)
    out = torch.full_like(given, -1.0)
    number = ['none', 'no barrier', 'no wait', 'too far'].index(fault)
    complaint = emulation.c.mmvim_emulation_neighbours(given.data_ptr(), out.data_ptr(), number)
    return out, complaint and complaint.decode()


def test_a_sound_algorithm(emulated: Any) -> None:
    for order in ORDERS:
        emulated.use_order(*order)
        out, complaint = neighbours(emulated)
        assert complaint is None, order
        assert torch.equal(out, torch.arange(64.0).roll(-1)), order


def test_a_missing_barrier_shows(emulated: Any) -> None:
    """The order changes results; what nobody has written yet is no number."""
    found = []
    for order in ORDERS:
        emulated.use_order(*order)
        out, complaint = neighbours(emulated, 'no barrier')
        assert complaint is None
        found.append(out)
    assert found[0][:-1].isnan().all() and not found[0][-1].isnan()
    assert not found[2][:-1].isnan().any() and found[2][-1].isnan()


def test_a_copy_that_is_not_waited_for(emulated: Any) -> None:
    out, complaint = neighbours(emulated, 'no wait')
    assert out.isnan().all()
    assert complaint == 'a copy was not waited for'


def test_a_write_beyond_shared_memory(emulated: Any) -> None:
    assert neighbours(emulated, 'too far')[1] == 'a block wrote beyond its shared memory'


def wide_sums(z: Tensor, backend: str, **tensors: Tensor) -> Tensor:
    """Sums in float32 without a gate; z gets a gradient of zeros."""
    scan = torch.ops.mmvim_emulated.bidirectional_selective_scan
    out: Tensor = scan(*tensors.values(), None, 0.5, True, 128)[0]
    return out + 0 * z


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(('N', 'R'), [(16, 12), (16, 3), (5, 1), (32, 48), (1, 6)])
def test_scans_give_the_same_bits_in_every_order(
    dtype: torch.dtype,
    N: int,
    R: int,
    scan_inputs: Inputs,
    bidirectional_inputs: Inputs,
    value_and_grads: Inputs,
    emulated: Any,
) -> None:
    """Every split; whole tiles and chunks and not; directions that meet in a tile and between."""
    generic = partial(mmvim_ops.selective_scan, delta_softplus=True, return_last_state=True)
    both = bidirectional
    sixteen = [(1, 4), (2, 8), (4, 16), (8, 4), (16, 8)]
    splits = {1: [(1, 1)], 16: sixteen}.get(N, [(0, 0)])
    for L in (64, 150, 290):
        shape = dict(B=1, L=L, E=37, N=N, dtype=dtype)
        cases: list[tuple[Any, dict[str, Tensor]]] = [
            (generic, scan_inputs(**shape)),
            (partial(generic, reverse=True), scan_inputs(**shape)),
            (both, bidirectional_inputs(R=R, **shape)),
            (wide_sums, bidirectional_inputs(R=R, **shape)),
        ]
        for function, inputs in cases:
            for split in splits:
                emulated.force_splits(*split)
                found = []
                for order in ORDERS:
                    emulated.use_order(*order)
                    found.append(value_and_grads(function, inputs, backend='cpu'))
                for order, other in zip(ORDERS, found):
                    for name in other:
                        assert torch.equal(other[name], found[0][name]), (L, split, order, name)
