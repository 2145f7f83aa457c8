"""The Triton backend: its other ops, inside torch, what it refuses, and when auto takes it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
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

Inputs = Callable[..., dict[str, Tensor]]
Compare = Callable[..., None]

HALVES = [torch.bfloat16, torch.float16]


def test_empty_batch(
    bidirectional_inputs: Inputs, scan_inputs: Inputs, compare_triton: Compare
) -> None:
    compare_triton(bidirectional, bidirectional_inputs(B=0, L=3, E=3, N=2, dtype=torch.float32))
    compare_triton(mmvim_ops.selective_scan, scan_inputs(B=0, L=3, E=3, N=2, dtype=torch.float32))
    x, weight = torch.zeros(0, 3, 5), torch.ones(5, 4)
    compare_triton(mmvim_ops.conv1d_silu, dict(x=x, weight=weight))
    compare_triton(mmvim_ops.add_rms_norm, dict(x=x, added=x, weight=weight[:, 0]))


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
    compare_triton: Compare,
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

    compare_triton(both, dict(x=x, w_f=w_f, w_b=w_b) | (dict(b_f=b_f, b_b=b_b) if bias else {}))
    if bias:
        one = partial(mmvim_ops.conv1d_silu, reverse=L % 2 > 0)
        compare_triton(one, dict(x=x, weight=w_f, bias=b_f))


@pytest.mark.parametrize('dtype', [torch.float32, *HALVES], ids=str)
def test_normalisation(dtype: torch.dtype, compare_triton: Compare, triton_device: str) -> None:
    """Of a sum in float32 that takes a block's output of any dtype."""
    generator = torch.Generator().manual_seed(0)
    x, added = torch.randn(2, 2, 3, 5, generator=generator)
    inputs = dict(x=x, added=added.to(dtype), weight=torch.randn(5, generator=generator))
    compare_triton(mmvim_ops.add_rms_norm, inputs)
    some = {name: tensor.to(triton_device) for name, tensor in inputs.items()}
    some['x'] = some['x'].bfloat16()
    normed, total = mmvim_ops.add_rms_norm(**some, backend='triton')
    assert (normed.dtype, total.dtype) == (torch.float32, torch.bfloat16)
    want = mmvim_ops.add_rms_norm(**some, backend='reference')
    torch.testing.assert_close((normed, total), want)


def test_a_block_of_vim(triton_device: str, compare_triton: Compare) -> None:
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
    compare_triton(inner, inputs)


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
    monkeypatch.setattr('triton.__version__', '3.9rc1')
    assert 'is older' not in (TRITON.unavailable() or '')


@pytest.mark.parametrize(('version', 'taken'), [('3.1.0', False), ('99.0', True)])
def test_a_compiler_is_told_of_an_old_triton(
    version: str, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What auto takes inside of a graph, where it compares no numbers."""
    pytest.importorskip('triton')
    monkeypatch.setattr('triton.__version__', version)
    monkeypatch.setattr(triton, 'INTERPRETED', False)
    torch.compiler.reset()

    def asked(x: Tensor) -> Tensor:
        return x + 1 if TRITON.serves(torch.device('cuda'), torch.float32, 4) else x

    graph = torch.compile(asked, backend='eager', fullgraph=True)
    assert graph(torch.zeros(1)).item() == taken


def test_the_note_says_that_it_interprets(monkeypatch: pytest.MonkeyPatch) -> None:
    for interpreted, said in ((False, 'compiled at the first call'), (True, 'interpreter')):
        monkeypatch.setattr(triton, 'INTERPRETED', interpreted)
        assert said in TRITON.note


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


@pytest.mark.usefixtures('triton_device')
def test_compilations_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Those of our kernels, and not what is found on disk."""
    from mmvim_ops.triton_kernels import device

    caplog.set_level('INFO', logger='mmvim_ops')
    times = SimpleNamespace(total=12_300_000)
    for module, cache_hit in (('mmvim_ops.x', False), ('mmvim_ops.x', True), ('other', False)):
        kernel = SimpleNamespace(module=module, fn=test_what_it_refuses)
        device._report(src=SimpleNamespace(fn=kernel), times=times, cache_hit=cache_hit, rest=0)
    assert caplog.messages == ['compiled test_what_it_refuses in 12 s']


@pytest.mark.slow
def test_self_check_passes(triton_device: str) -> None:
    difference = partial(self_check.difference, TRITON, CHUNKED, torch.device(triton_device))
    if triton_device == 'cpu':  # interpreted, each dtype and number of states takes half a minute
        difference = partial(difference, dtypes=[torch.bfloat16], numbers_of_states=[16])
    assert difference() is None
