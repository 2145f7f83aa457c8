"""The kernels in Triton: values and gradients against the float64 reference, and what they refuse.

On a GPU as they are; elsewhere in Triton's interpreter, where an operation takes as long for a
thousand numbers as for one: sizes are small, and chunks short.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from mmvim_ops_by_name import bidirectional, inner
from torch import Tensor

import mmvim_ops
from mmvim_ops import self_check
from mmvim_ops.backends import triton
from mmvim_ops.backends.chunked import CHUNKED
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
ALL_LENGTHS = [1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129]
ALL_STATES = {1: 1, 2: 12, 5: 4, 8: 16, 16: 12, 17: 17, 31: 3, 32: 48}  # and the rank of each


def double(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in tensors.items()}


@pytest.fixture
def use_chunk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Has states saved every so many tokens."""
    return partial(monkeypatch.setattr, TRITON, 'chunk')


@pytest.fixture
def compare(triton_device: str, value_and_grads: Inputs, assert_close: Any) -> Compare:
    """Compares values and all gradients of an op with the reference's.

    With ``loop`` it is enough to be as good as the token loop in the dtype of the inputs.
    """

    def check(
        function: Callable[..., Any],
        inputs: dict[str, Tensor],
        where: object = '',
        loop: bool = False,
    ) -> None:
        expected = value_and_grads(function, double(inputs), backend='reference')
        floor = value_and_grads(function, inputs, backend='reference') if loop else None
        given = {name: tensor.to(triton_device) for name, tensor in inputs.items()}
        actual = value_and_grads(function, given, backend='triton')
        lead = next(iter(inputs.values()))
        for name, tensor in inputs.items():
            assert actual[f'grad of {name}'].dtype == tensor.dtype
        assert_close(actual, expected, where=where, channels=lead.shape[2], floor=floor)

    return check


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
    compare: Compare,
    use_chunk: Callable[[int], None],
) -> None:
    """Of both scans; the generic one with its last state, in a direction for each length."""
    use_chunk(chunk)
    both = bidirectional_inputs(B=B, L=L, E=E, N=N, R=R, dtype=torch.float32)
    compare(partial(bidirectional, scale=0.7), both)
    one = scan_inputs(B=B, L=L, E=E, N=N, groups=groups, dtype=torch.float32)
    options = dict(delta_softplus=True, groups=groups, reverse=L % 2 > 0, return_last_state=True)
    compare(partial(mmvim_ops.selective_scan, **options), one)


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
    compare: Compare,
    use_chunk: Callable[[int], None],
    few_channels: Any,
    triton_device: str,
) -> None:
    """Side by side, each from what the one before leaves."""
    use_chunk(2)
    few_channels(warps, most=1)
    compare(bidirectional, bidirectional_inputs(B=2, L=L, E=3, N=2, R=2, dtype=torch.float32))
    one = scan_inputs(B=1, L=L, E=4, N=3, groups=2, dtype=torch.float32)
    options = dict(delta_softplus=True, groups=2, reverse=L == 5, return_last_state=True)
    compare(partial(mmvim_ops.selective_scan, **options), one)
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
    dtype: torch.dtype, scan_inputs: Inputs, bidirectional_inputs: Inputs, compare: Compare
) -> None:
    compare(bidirectional, bidirectional_inputs(B=1, L=6, E=5, N=2, R=2, dtype=dtype))
    generic = partial(mmvim_ops.selective_scan, delta_softplus=True)
    compare(generic, scan_inputs(B=1, L=6, E=5, N=2, dtype=dtype))


def test_what_may_be_left_out(
    scan_inputs: Inputs, bidirectional_inputs: Inputs, compare: Compare
) -> None:
    """D, z and the bias of the generic scan, softplus too; the gate of the other."""
    inputs = scan_inputs(B=1, L=4, E=3, N=2, dtype=torch.float32)
    inputs['delta'], inputs['delta_bias'] = inputs['delta'].abs(), inputs['delta_bias'].abs()
    for absent in (('D',), ('z', 'delta_bias'), ('D', 'z', 'delta_bias')):
        some = {name: tensor for name, tensor in inputs.items() if name not in absent}
        compare(mmvim_ops.selective_scan, some, where=absent)
    both = bidirectional_inputs(B=1, L=4, E=3, N=2, dtype=torch.float32)
    del both['z']
    compare(bidirectional, both, where='no gate')


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
    expected = value_and_grads(bidirectional, double(inputs), backend='reference')
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


def test_empty_batch(bidirectional_inputs: Inputs, scan_inputs: Inputs, compare: Compare) -> None:
    compare(bidirectional, bidirectional_inputs(B=0, L=3, E=3, N=2, dtype=torch.float32))
    compare(mmvim_ops.selective_scan, scan_inputs(B=0, L=3, E=3, N=2, dtype=torch.float32))
    x, weight = torch.zeros(0, 3, 5), torch.ones(5, 4)
    compare(mmvim_ops.conv1d_silu, dict(x=x, weight=weight))
    compare(mmvim_ops.add_rms_norm, dict(x=x, added=x, weight=weight[:, 0]))


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


def test_in_a_compiler(bidirectional_inputs: Inputs, triton_device: str) -> None:
    """One graph, whose numbers are the same bits; the kernels are no part of it."""
    made = bidirectional_inputs(B=1, L=3, E=3, N=2, dtype=torch.float32)
    leaves = [tensor.to(triton_device).requires_grad_() for tensor in made.values()]
    scan = partial(bidirectional, backend='triton')
    wanted = scan(*leaves)
    found = torch.compile(scan, backend='aot_eager', fullgraph=True)(*leaves)
    assert torch.equal(found, wanted)
    grads = (torch.autograd.grad(out.sum(), leaves) for out in (found, wanted))
    assert all(torch.equal(*pair) for pair in zip(*grads))


def test_autocast_changes_nothing(bidirectional_inputs: Inputs, triton_device: str) -> None:
    """Nor does it in a product of matrices, as which steps of a large rank are computed."""
    made = bidirectional_inputs(B=1, L=2, E=3, N=1, R=17, dtype=torch.float32)
    leaves = [tensor.to(triton_device).requires_grad_() for tensor in made.values()]

    def run() -> tuple[Tensor, ...]:
        out = bidirectional(*leaves, backend='triton')
        return (out, *torch.autograd.grad(out.sum(), leaves))

    wanted = run()
    with torch.autocast(triton_device, torch.bfloat16):
        found = run()
    assert all(torch.equal(*pair) for pair in zip(found, wanted))


@pytest.mark.slow
def test_opcheck(scan_inputs: Inputs, bidirectional_inputs: Inputs, triton_device: str) -> None:
    """Of both scans, with gradients: schemas, shape rules and derivatives."""
    for name, made, options in (
        ('bidirectional_selective_scan', bidirectional_inputs, (0.5, True, 2)),
        ('selective_scan', scan_inputs, (True, True, 1, 2)),
    ):
        inputs = made(B=1, L=3, E=3, N=2, dtype=torch.bfloat16)
        if name == 'selective_scan':
            order = ('u', 'delta', 'A', 'B', 'C', 'D', 'z', 'delta_bias')
            inputs = {key: inputs[key] for key in order}
        leaves = [tensor.to(triton_device).requires_grad_() for tensor in inputs.values()]
        operator = getattr(torch.ops.mmvim_triton, name).default
        torch.library.opcheck(operator, (*leaves, *options))


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize(
    ('L', 'E', 'width', 'B', 'segment'),
    [(1, 3, 4, 2, 64), (5, 65, 3, 1, 2), (4, 2, 1, 2, 3), (3, 2, 7, 1, 2)],
)
@pytest.mark.usefixtures('triton_device')
def test_convolutions(
    L: int,
    E: int,
    width: int,
    B: int,
    segment: int,
    bias: bool,
    compare: Compare,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Any width, in segments shorter than it and longer; in one direction and in both."""
    monkeypatch.setattr('mmvim_ops.triton_kernels.conv._SEGMENT', segment)
    generator = torch.Generator().manual_seed(L)
    x = torch.randn(B, L, E, generator=generator)
    w_f, w_b = torch.randn(2, E, width, generator=generator)
    b_f, b_b = torch.randn(2, E, generator=generator)

    def both(b_f: Tensor | None = None, b_b: Tensor | None = None, **others: Any) -> Any:
        return mmvim_ops.bi_conv1d_silu(b_f=b_f, b_b=b_b, **others)

    compare(both, dict(x=x, w_f=w_f, w_b=w_b) | (dict(b_f=b_f, b_b=b_b) if bias else {}))
    if bias:
        one = partial(mmvim_ops.conv1d_silu, reverse=L % 2 > 0)
        compare(one, dict(x=x, weight=w_f, bias=b_f))


@pytest.mark.parametrize('dtype', [torch.float32, *HALVES], ids=str)
def test_normalisation(dtype: torch.dtype, compare: Compare, triton_device: str) -> None:
    """Of a sum in float32 that takes a block's output of any dtype."""
    generator = torch.Generator().manual_seed(0)
    x, added = torch.randn(2, 2, 3, 5, generator=generator)
    inputs = dict(x=x, added=added.to(dtype), weight=torch.randn(5, generator=generator))
    compare(mmvim_ops.add_rms_norm, inputs)
    some = {name: tensor.to(triton_device) for name, tensor in inputs.items()}
    some['x'] = some['x'].bfloat16()
    normed, total = mmvim_ops.add_rms_norm(**some, backend='triton')
    assert (normed.dtype, total.dtype) == (torch.float32, torch.bfloat16)
    want = mmvim_ops.add_rms_norm(**some, backend='reference')
    torch.testing.assert_close((normed, total), want)


def test_a_block_of_vim(triton_device: str, compare: Compare) -> None:
    """Its convolutions are computed twice in training."""
    generator = torch.Generator().manual_seed(0)
    E, N, R = 3, 2, 2

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    inputs = dict(x=randn(1, 4, E), z=randn(1, 4, E))
    for d in 'fb':
        inputs |= {f'w_{d}': randn(E, 4), f'x_w_{d}': randn(R + 2 * N, E)}
        inputs |= {f'dt_w_{d}': randn(E, R), f'dt_b_{d}': randn(E) - 2}
        inputs |= {f'A_{d}': -randn(E, N).exp(), f'D_{d}': randn(E)}
    compare(inner, inputs)


def test_what_it_refuses(triton_device: str, scan_inputs: Inputs) -> None:
    for inputs, sentence in (
        (scan_inputs(), 'no float64 kernels'),
        (scan_inputs(N=33, dtype=torch.float32), 'up to 32 states, got 33'),
        (
            {n: t.to('meta') for n, t in scan_inputs(dtype=torch.float32).items()},
            'needs tensors on a GPU, and the inputs are on meta',
        ),
    ):
        if inputs['u'].device.type != 'meta':
            inputs = {name: tensor.to(triton_device) for name, tensor in inputs.items()}
        with pytest.raises(RuntimeError, match=f"backend='triton' .*{sentence}.*; try 'auto'"):
            mmvim_ops.selective_scan(**inputs, backend='triton')


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or with one that is too old, the reason says what to install."""
    monkeypatch.setitem(sys.modules, 'triton', None)
    assert 'pip install triton' in (TRITON.unavailable() or '')
    device = torch.device('cuda')
    assert 'pip install triton' in (TRITON.problem(device, torch.float32) or '')
    assert not TRITON.serves(device, torch.float32)


def test_an_old_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('triton')
    monkeypatch.setattr('triton.__version__', '3.1.0+git')
    assert 'triton 3.1.0+git is older than 3.' in (TRITON.unavailable() or '')


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('triton')
    monkeypatch.setattr(triton, 'INTERPRETED', False)
    assert 'needs a GPU, and torch sees none' in (TRITON.unavailable() or '')
    problem = TRITON.problem(torch.device('cpu'), torch.float32)
    assert problem == 'it needs tensors on a GPU, and the inputs are on cpu'


@pytest.mark.usefixtures('triton_device')
def test_auto_never_interprets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, 'INTERPRETED', True)
    for kind in ('cpu', 'cuda'):
        assert not TRITON.serves(torch.device(kind), torch.float32, 4)


@pytest.mark.parametrize('fault', [None, 'wrong', 'raised'])
def test_auto_compares_before_it_takes_them(
    fault: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once a device, dtype and number of states; what cannot be compiled is as bad as wrong."""
    caplog.set_level('INFO', logger='mmvim_ops')
    pytest.importorskip('triton')
    calls = []

    def difference(*args: Any) -> str | None:
        calls.append(args)
        if fault == 'raised':
            raise RuntimeError('no C compiler')
        return fault

    monkeypatch.setattr(triton, 'INTERPRETED', False)
    monkeypatch.setattr(self_check, 'difference', difference)
    monkeypatch.setattr(TRITON, '_problems', {})
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: False)
    device = torch.device('cuda', 0)
    if fault is None:
        assert TRITON.serves(device, torch.float32, 16)
    else:
        sentence = 'RuntimeError: no C compiler' if fault == 'raised' else 'wrong'
        with pytest.warns(UserWarning, match=f'cannot be used on cuda:0: {sentence}; auto takes'):
            assert not TRITON.serves(device, torch.float32, 16)
    assert TRITON.serves(device, torch.float32, 16) is (fault is None)
    assert calls == [(TRITON, CHUNKED, device, [torch.float32], [16])]
    said = [
        'compared on cuda:0 for torch.float32, 16 states in 0 s' in each.message
        for each in caplog.records
    ]
    assert said == ([] if fault == 'raised' else [True])


@pytest.mark.slow
def test_self_check_passes(triton_device: str) -> None:
    assert self_check.difference(TRITON, CHUNKED, torch.device(triton_device)) is None


@pytest.mark.slow
@pytest.mark.parametrize('L', ALL_LENGTHS)
def test_all_sizes(
    L: int,
    scan_inputs: Inputs,
    bidirectional_inputs: Inputs,
    compare: Compare,
) -> None:
    """Every length with two numbers of states and a dtype; channels of two blocks where short."""
    states = list(ALL_STATES)
    place = ALL_LENGTHS.index(L)
    dtype = (torch.float32, *HALVES)[place % 3]
    for N, reverse in product((states[place % 8], states[(place + 3) % 8]), (False, True)):
        E, B = (33, 3) if L * N < 100 else (3, 1)
        groups = 3 if reverse else 1
        one = scan_inputs(B=B, L=L, E=E, N=N, groups=groups, dtype=dtype)
        options = dict(delta_softplus=True, groups=groups, reverse=reverse, return_last_state=True)
        compare(partial(mmvim_ops.selective_scan, **options), one, where=(N, reverse))
        both = bidirectional_inputs(B=B, L=L, E=E, N=N, R=ALL_STATES[N], dtype=dtype)
        compare(bidirectional, both, where=N)


@pytest.mark.slow
@pytest.mark.parametrize('case', ['slow', 'underflowing', 'beyond the threshold', 'tiny steps'])
def test_extremes(case: str, bidirectional_inputs: Inputs, compare: Compare) -> None:
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
    compare(bidirectional, inputs, loop=True)
