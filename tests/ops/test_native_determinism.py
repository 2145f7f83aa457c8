"""The compiled kernels give the same bits again, on any number of threads and where asked to."""

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
Case = tuple[Callable[..., Any], dict[str, Tensor]]


@pytest.fixture
def cases(scan_inputs: Inputs, bidirectional_inputs: Inputs) -> Callable[..., list[Case]]:
    """All ops at a batch size, with channels for several blocks and tokens for several tiles."""

    def make(B: int, kernels: Any) -> list[Case]:
        shape = dict(B=B, L=150, E=210, N=5, dtype=torch.float32)
        generic = partial(mmvim_ops.selective_scan, delta_softplus=True)
        both = bidirectional_inputs(**shape)
        weight = torch.randn(2, 210, 4, generator=torch.Generator().manual_seed(0))
        conv = dict(x=both['x_f'], w_f=weight[0], b_f=both['D_f'], w_b=weight[1], b_b=both['D_b'])
        half = {n: t.bfloat16() if t.dim() > 2 else t for n, t in both.items()}
        made = [
            (partial(generic, return_last_state=True), scan_inputs(**shape)),
            (partial(generic, reverse=True, groups=3), scan_inputs(**shape, groups=3)),
            (bidirectional, both),
            (bidirectional, half),
            (bidirectional, bidirectional_inputs(**{**shape, 'N': 1})),
            (mmvim_ops.bi_conv1d_silu, conv),
        ]
        return [(partial(op, backend=kernels.backend), kernels.place(given)) for op, given in made]

    return make


@pytest.fixture
def restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def assert_same_bits(first: dict[str, Tensor], second: dict[str, Tensor], where: object) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), (name, where)


@pytest.mark.usefixtures('deterministic')
def test_repeated_runs(cases: Any, value_and_grads: Inputs, each_kernels: Iterator[Any]) -> None:
    for kernels in each_kernels:
        for function, inputs in cases(3, kernels):
            first = value_and_grads(function, inputs)
            assert_same_bits(first, value_and_grads(function, inputs), kernels.name)


@pytest.mark.usefixtures('deterministic')
def test_sums_in_a_fixed_order(
    cases: Any, value_and_grads: Inputs, assert_close: Any, each_kernels: Iterator[Any]
) -> None:
    """Values where blocks leave a part each; the other tests have them add up as they come."""
    for kernels in each_kernels:
        for function, inputs in cases(2, kernels):
            exact = {name: tensor.double().cpu() for name, tensor in inputs.items()}
            expected = value_and_grads(partial(function, backend='reference'), exact)
            actual = value_and_grads(function, inputs)
            assert_close(actual, expected, where=kernels.name)


@pytest.mark.usefixtures('restored_threads')
@pytest.mark.parametrize('B', [1, 3])
def test_number_of_threads(
    B: int, cases: Any, value_and_grads: Inputs, each_isa: Iterator[Any]
) -> None:
    """Outputs and gradients on 1 to 4 threads: blocks of channels differ, sums may not."""
    for kernels in each_isa:
        for function, inputs in cases(B, kernels):
            torch.set_num_threads(1)
            alone = value_and_grads(function, inputs)
            for threads in (2, 3, 4):
                torch.set_num_threads(threads)
                assert torch.get_num_threads() == threads
                assert_same_bits(alone, value_and_grads(function, inputs), (kernels.name, threads))


@pytest.mark.usefixtures('restored_threads')
def test_saving_states_changes_no_output(
    cases: Any, value_and_grads: Inputs, each_kernels: Iterator[Any]
) -> None:
    """The tiles of an inference end elsewhere than those of a training step."""
    for kernels in each_kernels:
        for function, inputs in cases(1, kernels):
            out = function(**inputs)
            out = out[0] if isinstance(out, tuple) else out
            assert torch.equal(out, value_and_grads(function, inputs)['out']), kernels.name


def test_fast_decays_beside_change_no_bit(
    bidirectional_inputs: Inputs, value_and_grads: Inputs, each_kernels: Iterator[Any]
) -> None:
    """Kernels that take a shorter way where no decay is fast take it for many channels at once."""
    given = bidirectional_inputs(B=1, L=70, E=20, N=9, dtype=torch.float32)
    fast, others = 5, torch.arange(20) != 5
    beside = {name: tensor.clone() for name, tensor in given.items()}
    for name in ('A_f', 'A_b'):
        beside[name][fast] = -1e6
    for kernels in each_kernels:
        function = partial(bidirectional, backend=kernels.backend)
        first, second = (value_and_grads(function, kernels.place(g)) for g in (given, beside))
        for name in ('out', 'grad of x_f', 'grad of x_b', 'grad of z'):
            assert torch.equal(first[name][..., others], second[name][..., others]), (
                name,
                kernels.name,
            )
            assert not torch.equal(first[name][..., fast], second[name][..., fast])
