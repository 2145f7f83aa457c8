"""The scans in Triton: values and gradients against the float64 reference.

On a GPU as they are; elsewhere in Triton's interpreter, where an operation takes as long for a
thousand numbers as for one: sizes are small, and chunks short.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from mmvim_ops_by_name import bidirectional
from torch import Tensor

import mmvim_ops
from mmvim_ops.backends.triton import TRITON
from mmvim_ops.scan_inputs import SelectiveInputs

Inputs = Callable[..., dict[str, Tensor]]
Compare = Callable[..., None]

HALVES = [torch.bfloat16, torch.float16]
# L, E, N, B, R, groups and tokens of a chunk: channels beside the 32 and 64 of a block, odd
# numbers of states, tokens beside the end of a chunk and beside those that are held in registers.
SIZES = [
    (1, 3, 1, 2, 1, 1, 4),
    (5, 67, 3, 1, 3, 1, 4),
    (8, 6, 4, 2, 2, 3, 4),
    (7, 4, 16, 1, 2, 2, 3),
    (3, 2, 32, 1, 17, 1, 64),
]
ALL_LENGTHS = [1, 2, 31, 32, 33, 63, 64, 65, 129]  # chunks of 64; two full ones: SIZES
ALL_STATES = {1: 1, 2: 12, 5: 4, 8: 16, 16: 12, 17: 17, 31: 3, 32: 48}  # and the rank of each


@pytest.fixture
def use_chunk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Has states saved every so many tokens."""
    return partial(monkeypatch.setattr, TRITON, 'chunk')


@pytest.mark.parametrize(('L', 'E', 'N', 'B', 'R', 'groups', 'chunk'), SIZES)
def test_values_and_gradients(
    *,
    L: int,
    E: int,
    N: int,
    B: int,
    R: int,
    groups: int,
    chunk: int,
    scan_inputs: Inputs,
    bidirectional_inputs: Inputs,
    compare_triton: Compare,
    use_chunk: Callable[[int], None],
) -> None:
    """Of both scans; the generic one with its last state, in a direction for each length."""
    use_chunk(chunk)
    both = bidirectional_inputs(B=B, L=L, E=E, N=N, R=R, dtype=torch.float32)
    compare_triton(partial(bidirectional, scale=0.7), both)
    one = scan_inputs(B=B, L=L, E=E, N=N, groups=groups, dtype=torch.float32)
    options = dict(delta_softplus=True, groups=groups, reverse=L % 2 > 0, return_last_state=True)
    compare_triton(partial(mmvim_ops.selective_scan, **options), one)


@pytest.fixture
def few_channels(triton_device: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A device of a number of warps, which channels alone do not fill."""
    place = 'mmvim_ops.triton_kernels.scan_direction'

    def use(warps: int, most: int = 2048) -> None:
        monkeypatch.setattr(f'{place}.multiprocessors', lambda device: 1)
        monkeypatch.setattr(f'{place}._WARPS_EACH', warps)
        monkeypatch.setattr(f'{place}._MOST_WARPS', most)
        monkeypatch.setattr(f'{place}._UNIT', 3)

    return use


@pytest.mark.parametrize(('L', 'warps'), [(9, 8), (5, 6)])
def test_segments(
    L: int,
    warps: int,
    scan_inputs: Inputs,
    bidirectional_inputs: Inputs,
    compare_triton: Compare,
    use_chunk: Callable[[int], None],
    few_channels: Any,
    triton_device: str,
) -> None:
    """Side by side, each from what the one before leaves."""
    use_chunk(2)
    few_channels(warps, most=1)
    compare_triton(
        bidirectional, bidirectional_inputs(B=2, L=L, E=3, N=2, R=2, dtype=torch.float32)
    )
    one = scan_inputs(B=1, L=L, E=4, N=3, groups=2, dtype=torch.float32)
    options = dict(delta_softplus=True, groups=2, reverse=L == 5, return_last_state=True)
    compare_triton(partial(mmvim_ops.selective_scan, **options), one)
    given = {name: tensor.to(triton_device) for name, tensor in one.items()}
    with torch.no_grad():  # segments of three tokens, of which no state is saved
        found = mmvim_ops.selective_scan(**given, **options, backend='triton')
        wanted = mmvim_ops.selective_scan(**given, **options, backend='reference')
    torch.testing.assert_close(found, wanted, rtol=2e-6, atol=2e-6)


def test_segments_follow_from_the_device(scan_inputs: Inputs, few_channels: Any) -> None:
    """None where channels fill it, or nearly; else whole chunks, as many as it takes."""
    from mmvim_ops.triton_kernels import scan_direction, scans

    inputs = SelectiveInputs(**scan_inputs(B=1, L=1000, E=8, N=1, dtype=torch.float32))
    given = scans._selective(inputs, True, False, 1)
    few_channels(8)
    for programs, chunk, expected in (
        (8, 64, 1000),
        (5, 64, 1000),
        (4, 64, 512),
        (1, 64, 128),
        (1, 100, 200),
        (1, 1000, 126),  # no states saved: multiples of three
    ):
        assert scan_direction._segment_length(given, programs, chunk) == expected


@pytest.mark.parametrize('dtype', HALVES, ids=str)
def test_half_precision(
    dtype: torch.dtype, scan_inputs: Inputs, bidirectional_inputs: Inputs, compare_triton: Compare
) -> None:
    compare_triton(bidirectional, bidirectional_inputs(B=1, L=6, E=5, N=2, R=2, dtype=dtype))
    generic = partial(mmvim_ops.selective_scan, delta_softplus=True)
    compare_triton(generic, scan_inputs(B=1, L=6, E=5, N=2, dtype=dtype))


def test_what_may_be_left_out(
    scan_inputs: Inputs, bidirectional_inputs: Inputs, compare_triton: Compare
) -> None:
    """D, z and the bias of the generic scan, softplus too; the gate of the other."""
    inputs = scan_inputs(B=1, L=4, E=3, N=2, dtype=torch.float32)
    inputs['delta'], inputs['delta_bias'] = inputs['delta'].abs(), inputs['delta_bias'].abs()
    for absent in (('D',), ('z', 'delta_bias'), ('D', 'z', 'delta_bias')):
        some = {name: tensor for name, tensor in inputs.items() if name not in absent}
        compare_triton(mmvim_ops.selective_scan, some, where=absent)
    both = bidirectional_inputs(B=1, L=4, E=3, N=2, dtype=torch.float32)
    del both['z']
    compare_triton(bidirectional, both, where='no gate')


@pytest.mark.parametrize('z', [True, False])
def test_unrounded_sums(
    z: bool,
    bidirectional_inputs: Inputs,
    triton_device: str,
    value_and_grads: Inputs,
    assert_close: Any,
) -> None:
    """Half-precision inputs whose sums stay float32, and so does their gradient."""
    inputs = bidirectional_inputs(B=1, L=3, E=3, N=2, dtype=torch.bfloat16)
    if not z:
        del inputs['z']
    expected = value_and_grads(
        bidirectional,
        {name: tensor.double() for name, tensor in inputs.items()},
        backend='reference',
    )
    inputs = {name: tensor.to(triton_device) for name, tensor in inputs.items()}
    actual = value_and_grads(bidirectional, inputs, out_dtype=torch.float32, backend='triton')
    assert actual['out'].dtype == torch.float32
    assert_close(actual, expected)


def test_views_are_read_where_they_lie(
    bidirectional_inputs: Inputs, scan_inputs: Inputs, triton_device: str, value_and_grads: Inputs
) -> None:
    """Rows inside of wider ones, and a last dimension that is spread, give the bits of a copy."""
    both = bidirectional_inputs(B=2, L=3, E=3, N=2, dtype=torch.float32)
    for function, inputs in (
        (bidirectional, both),
        (mmvim_ops.selective_scan, scan_inputs(B=2, L=3, E=4, N=2, groups=2, dtype=torch.float32)),
    ):
        function = partial(function, backend='triton')
        if 'u' in inputs:
            function = partial(function, groups=2)
        inputs = {name: tensor.to(triton_device) for name, tensor in inputs.items()}
        wider = {
            name: torch.cat((tensor, tensor + 1), dim=-1)[..., : tensor.shape[-1]]
            for name, tensor in inputs.items()
        }
        spread = {
            name: torch.stack((tensor, tensor + 1), dim=-1)[..., 0]
            for name, tensor in inputs.items()
        }
        expected = function(**inputs)
        assert torch.equal(function(**wider), expected)
        assert torch.equal(function(**spread), expected)


@pytest.mark.parametrize('first', range(5))
def test_rows_anywhere_in_memory(
    first: int, bidirectional_inputs: Inputs, triton_device: str
) -> None:
    """Rows of dt, B and C, 8 numbers from every multiple of 4, 8 or 16 bytes, give the same bits.

    Kernels clear the last bits of their addresses, as many as are zero.
    """
    made = bidirectional_inputs(B=2, L=3, E=3, N=2, R=4, dtype=torch.float32)
    inputs = {name: tensor.to(triton_device) for name, tensor in made.items()}
    moved = dict(inputs)
    for name in ('dbl_f', 'dbl_b'):
        wide = torch.full((2, 3, 12), 9.0, device=triton_device)
        moved[name] = wide[..., first : first + 8].copy_(inputs[name])
    scan = partial(bidirectional, backend='triton')
    assert torch.equal(scan(**moved), scan(**inputs))


def test_steps_far_from_zero(triton_device: str) -> None:
    """Softplus of what has no exponential is zero, or what it was given."""
    delta = torch.tensor([-float('inf'), -3e30, -200.0, 200.0, 3e30])
    delta = delta.view(1, 5, 1).to(triton_device)
    ones = torch.ones(1, 5, 1, device=triton_device)
    out = mmvim_ops.selective_scan(
        *(ones, delta, -ones[0, :1], ones, ones), delta_softplus=True, backend='triton'
    )
    assert out.flatten().tolist() == [0, 0, 0, 200, pytest.approx(3e30)]


def test_any_subset_of_gradients(bidirectional_inputs: Inputs, triton_device: str) -> None:
    """An input gets the same bits alone as among all: no sum has an order of its own."""
    made = bidirectional_inputs(B=1, L=3, E=3, N=2, dtype=torch.float32)
    inputs = {name: tensor.to(triton_device) for name, tensor in made.items()}
    scan = partial(bidirectional, backend='triton')
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    wanted = torch.autograd.grad(scan(**leaves).sum(), tuple(leaves.values()))
    for name, expected in zip(leaves, wanted):
        if name.endswith('_f') or name == 'z':
            leaf = inputs[name].clone().requires_grad_()
            (grad,) = torch.autograd.grad(scan(**(inputs | {name: leaf})).sum(), leaf)
            assert torch.equal(grad, expected), name


def test_without_gradients_one_state_is_saved(
    bidirectional_inputs: Inputs, triton_device: str, use_chunk: Callable[[int], None]
) -> None:
    """And the values are those with gradients."""
    use_chunk(2)
    made = bidirectional_inputs(B=1, L=5, E=3, N=2, dtype=torch.float32)
    inputs = {name: tensor.to(triton_device) for name, tensor in made.items()}
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    x = inputs['x_f']
    assert TRITON.chunk_length(x, 2, 2, saves=False) == 5
    assert TRITON.chunk_length(x, 2, 2, saves=True) == 2
    out = bidirectional(**inputs, backend='triton')
    assert torch.equal(out, bidirectional(**leaves, backend='triton'))


@pytest.mark.slow
@pytest.mark.parametrize('L', ALL_LENGTHS)
def test_all_sizes(
    L: int,
    scan_inputs: Inputs,
    bidirectional_inputs: Inputs,
    compare_triton: Compare,
) -> None:
    """Every length with a dtype and two numbers of states, one each way; two blocks where short."""
    states = list(ALL_STATES)
    place = ALL_LENGTHS.index(L)
    dtype = (torch.float32, *HALVES)[place % 3]
    for N, reverse in ((states[place % 8], False), (states[(place + 3) % 8], True)):
        E, B = (33, 3) if L * N < 100 else (3, 1)
        groups = 3 if reverse else 1
        one = scan_inputs(B=B, L=L, E=E, N=N, groups=groups, dtype=dtype)
        options = dict(delta_softplus=True, groups=groups, reverse=reverse, return_last_state=True)
        compare_triton(partial(mmvim_ops.selective_scan, **options), one, where=(N, reverse))
        both = bidirectional_inputs(B=B, L=L, E=E, N=N, R=ALL_STATES[N], dtype=dtype)
        compare_triton(bidirectional, both, where=N)


@pytest.mark.slow
@pytest.mark.parametrize('case', ['slow', 'underflowing', 'beyond the threshold', 'tiny steps'])
def test_extremes(case: str, bidirectional_inputs: Inputs, compare_triton: Compare) -> None:
    """Decays next to one and of zero, steps that softplus leaves as they are, and tiny ones."""
    inputs = bidirectional_inputs(B=1, L=70, E=3, N=2, R=2, dtype=torch.float32)
    for d in 'fb':
        if case == 'slow':
            inputs[f'A_{d}'] = inputs[f'A_{d}'] * 1e-6
        elif case == 'underflowing':
            inputs[f'A_{d}'] = inputs[f'A_{d}'] * 1e4
        elif case == 'beyond the threshold':
            inputs[f'dt_b_{d}'] = inputs[f'dt_b_{d}'] + 25
        else:
            inputs[f'dt_b_{d}'] = inputs[f'dt_b_{d}'] - 12
    compare_triton(bidirectional, inputs, loop=True)
