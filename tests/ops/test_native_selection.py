"""What the compiled kernels do not cover: an error by name, a slower path under auto."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from mmvim_ops_by_name import bidirectional, called
from torch import Tensor

import mmvim_ops
from mmvim_ops import backends, loading, self_check
from mmvim_ops.backends import native

Inputs = Callable[..., dict[str, Tensor]]
pytestmark = pytest.mark.skipif(
    loading.path() is None, reason=f'no native library: {loading.problem()}'
)
generic = partial(mmvim_ops.selective_scan, delta_softplus=True)


@pytest.fixture(autouse=True)
def no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands between the CUDA kernels and pure torch has tests of its own."""
    order = tuple(each for each in backends.ORDER if each.name != 'triton')
    monkeypatch.setattr(backends, 'ORDER', order)


def test_float64(scan_inputs: Inputs, bidirectional_inputs: Inputs) -> None:
    for function, spec, inputs in (
        (generic, partial(generic, backend='chunked'), scan_inputs()),
        (bidirectional, partial(bidirectional, backend='chunked'), bidirectional_inputs()),
    ):
        with pytest.raises(RuntimeError, match=r"backend='cpu' .*no float64 kernels; try 'auto'"):
            function(**inputs, backend='cpu')
        out = function(**inputs)
        assert out.dtype == torch.float64
        assert torch.equal(out, spec(**inputs))
    x, weight = torch.randn(1, 5, 3).double(), torch.randn(3, 4).double()
    with pytest.raises(RuntimeError, match='no float64 kernels'):
        mmvim_ops.conv1d_silu(x, weight, backend='cpu')
    assert mmvim_ops.conv1d_silu(x, weight).dtype == torch.float64


def test_other_devices(scan_inputs: Inputs, bidirectional_inputs: Inputs) -> None:
    """The meta device stands in for any other."""
    for function, inputs in (
        (generic, scan_inputs(dtype=torch.float32)),
        (bidirectional, bidirectional_inputs(dtype=torch.float32)),
    ):
        elsewhere = {name: tensor.to('meta') for name, tensor in inputs.items()}
        with pytest.raises(
            RuntimeError, match=r"backend='cpu' .*CPU tensors.* on meta; try 'auto'"
        ):
            function(**elsewhere, backend='cpu')
        for name in inputs:
            with pytest.raises(
                ValueError, match=f'{called(name)} is on meta|on cpu and .* on meta'
            ):
                function(**(inputs | {name: elsewhere[name]}))
        assert function(**elsewhere).shape == (2, 17, 6)


@pytest.mark.parametrize('backend', ['auto', 'cpu'])
def test_float16_is_widened(
    backend: str,
    scan_inputs: Inputs,
    bidirectional_inputs: Inputs,
    value_and_grads: Inputs,
    assert_close: Any,
) -> None:
    for function, inputs in (
        (generic, scan_inputs(L=70, E=40, dtype=torch.float16)),
        (bidirectional, bidirectional_inputs(L=70, E=40, dtype=torch.float16)),
    ):
        exact = {name: tensor.double() for name, tensor in inputs.items()}
        expected = value_and_grads(function, exact, backend='reference')
        actual = value_and_grads(function, inputs, backend=backend)
        assert actual['out'].dtype == torch.float16
        assert_close(actual, expected)


def test_operators_refuse_other_dtypes(scan_inputs: Inputs) -> None:
    """Called without the checks of the functions: an error, no misread memory."""
    p = scan_inputs(dtype=torch.float32)
    names = ('u', 'delta', 'A', 'B', 'C', 'D', 'z', 'delta_bias')
    for name in ('u', 'delta', 'B', 'z'):
        for dtype in (torch.float64, torch.float16):
            tensors = [p[n].to(dtype) if n == name else p[n] for n in names]
            with pytest.raises(RuntimeError, match='take float32 and bfloat16'):
                torch.ops.mmvim.selective_scan(*tensors, True, False, 1, 64)
    with pytest.raises(RuntimeError, match='chunk must be at least 1'):
        torch.ops.mmvim.selective_scan(*(p[n] for n in names), True, False, 1, 0)


def test_widths_that_differ() -> None:
    """One W for both directions: the kernels read as many columns of one weight as of the other."""
    x = torch.randn(1, 9, 3)
    for backend in ('auto', 'cpu', 'chunked', 'reference'):
        with pytest.raises(ValueError, match=r'w_b has shape \(3, 5\); expected .*\(3, 3\)'):
            mmvim_ops.bi_conv1d_silu(
                x, torch.ones(3, 3), None, torch.ones(3, 5), None, backend=backend
            )


def test_gradient_of_a_wider_input(
    bidirectional_inputs: Inputs, value_and_grads: Inputs, assert_close: Any
) -> None:
    """Each gradient has the precision of its own input, not that of another."""
    inputs = bidirectional_inputs(B=1, L=70, E=24, dtype=torch.bfloat16)
    inputs['x_b'] = inputs['x_b'].float()
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    expected = value_and_grads(bidirectional, exact, backend='reference')
    assert_close(value_and_grads(bidirectional, inputs, backend='cpu'), expected)


@pytest.mark.parametrize('N', [1, 3, 33, 64])
def test_any_number_of_states_and_ranks(
    N: int, bidirectional_inputs: Inputs, value_and_grads: Inputs, assert_close: Any
) -> None:
    """There is no N and no R that the kernels do not cover."""
    inputs = bidirectional_inputs(B=1, L=70, E=24, N=N, R=2 * N + 1, dtype=torch.float32)
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    expected = value_and_grads(bidirectional, exact, backend='reference')
    assert_close(value_and_grads(bidirectional, inputs, backend='cpu'), expected)


def test_autocast_keeps_parameters_exact(
    bidirectional_inputs: Inputs,
    scan_inputs: Inputs,
    assert_close: Any,
    each_kernels: Iterator[Any],
) -> None:
    """Activations as the linear layers around leave them under autocast, parameters in float32."""
    shape = dict(B=1, L=70, E=24, N=8, dtype=torch.bfloat16)
    conv = dict(x=scan_inputs(**shape)['u'], weight=torch.randn(24, 4), bias=torch.randn(24))
    for kernels in each_kernels:
        for function, inputs in (
            (generic, scan_inputs(**shape)),
            (bidirectional, bidirectional_inputs(**shape)),
            (mmvim_ops.conv1d_silu, conv),
        ):
            results = []
            for exact in (False, True):
                leaves = {
                    name: (tensor.double() if exact else tensor.clone()).requires_grad_()
                    for name, tensor in (inputs if exact else kernels.place(inputs)).items()
                }
                device = 'cpu' if exact else kernels.device
                with torch.autocast(device, dtype=torch.bfloat16, enabled=not exact):
                    out = function(**leaves, backend='reference' if exact else 'auto')
                weight = torch.ones_like(out).cumsum(1).remainder(7) - 3
                grads = torch.autograd.grad(out, tuple(leaves.values()), weight)
                named = {f'grad of {name}': grad for name, grad in zip(leaves, grads)}
                results.append({'out': out.detach()} | named)
            assert results[0]['out'].dtype == torch.bfloat16
            for name, tensor in inputs.items():
                assert results[0][f'grad of {name}'].dtype == tensor.dtype, name
            assert_close(*results, where=kernels.name)


CUDA = torch.device('cuda', 0)


@pytest.fixture
def with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine whose GPU can run the kernels; nothing is called on it."""
    monkeypatch.setattr(loading, 'cuda_problem', lambda device=None: None)
    monkeypatch.setattr(native.CUDA, '_problems', {})
    monkeypatch.setattr(self_check, 'difference', lambda *args, **options: None)
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: False)


@pytest.mark.usefixtures('with_cuda')
def test_cuda_kernels_serve_cuda_tensors() -> None:
    for name in ('auto', 'cuda'):
        assert backends.select(name, CUDA, torch.bfloat16, states=32, rank=128) is native.CUDA
        assert backends.select(name, CUDA, torch.float16) is native.CUDA
    assert backends.select('auto', CUDA, torch.float64) is native.CHUNKED
    with pytest.raises(RuntimeError, match='no float64 kernels'):
        backends.select('cuda', CUDA, torch.float64)
    with pytest.raises(RuntimeError, match='needs CUDA tensors, and the inputs are on cpu'):
        backends.select('cuda', torch.device('cpu'), torch.float32)


@pytest.mark.usefixtures('with_cuda')
@pytest.mark.parametrize(('states', 'rank'), [(33, 4), (16, 129)])
def test_more_than_cuda_kernels_have_room_for(states: int, rank: int) -> None:
    assert backends.select('auto', CUDA, torch.float32, states, rank) is native.CHUNKED
    with pytest.raises(RuntimeError, match=f'up to 32 states .* 128, got {states} and {rank}'):
        backends.select('cuda', CUDA, torch.float32, states, rank)


def test_without_cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """By name an error; under auto one warning, for all calls on that device."""
    monkeypatch.setattr(loading, 'cuda_problem', lambda device=None: 'not built: no nvcc')
    monkeypatch.setattr(native.CUDA, '_problems', {})
    with pytest.raises(RuntimeError, match=r"backend='cuda' .*not built: no nvcc; try 'auto'"):
        backends.select('cuda', CUDA, torch.float32)
    with pytest.warns(UserWarning, match='runs without its CUDA kernels: not built: no nvcc'):
        assert backends.select('auto', CUDA, torch.float32) is native.CHUNKED
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert backends.select('auto', CUDA, torch.float32) is native.CHUNKED


@pytest.mark.usefixtures('with_cuda')
def test_kernels_that_are_wrong_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Auto asks once a device, and says what it found; by name they still run."""
    asked: list[torch.device] = []

    def difference(tested: object, trusted: object, device: torch.device, **options: object) -> str:
        assert (tested, trusted) == (native.CUDA, native.CHUNKED)
        asked.append(device)
        return 'result 3 in torch.float32 differs by 1.0e+00 from pure torch'

    monkeypatch.setattr(self_check, 'difference', difference)
    with pytest.warns(UserWarning, match=r'cannot be used on cuda:0: result 3 .*; auto takes'):
        assert backends.select('auto', CUDA, torch.float32) is native.CHUNKED
    assert backends.select('auto', CUDA, torch.float32) is native.CHUNKED and asked == [CUDA]
    assert backends.select('cuda', CUDA, torch.float32) is native.CUDA
    # Inside of a graph or a compiler nothing can be compared, nor is anything decided for later.
    for module, name in (
        (torch.cuda, 'is_current_stream_capturing'),
        (torch.compiler, 'is_compiling'),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(native.CUDA, '_problems', {})
            patch.setattr(loading, 'has_cuda', lambda: True)
            patch.setattr(module, name, lambda: True)
            assert backends.select('auto', CUDA, torch.float32) is native.CUDA
            assert asked == [CUDA] and not native.CUDA._problems


@pytest.mark.usefixtures('with_cuda')
def test_kernels_that_cannot_be_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault as any other; a full GPU says nothing of the kernels."""

    def fail(error: RuntimeError) -> None:
        raise error

    monkeypatch.setattr(
        self_check, 'difference', lambda *args, **options: fail(RuntimeError('invalid value'))
    )
    with pytest.warns(UserWarning, match='cannot be used on cuda:0: invalid value'):
        assert backends.select('auto', CUDA, torch.float32) is native.CHUNKED
    monkeypatch.setattr(native.CUDA, '_problems', {})
    full = torch.OutOfMemoryError('2 GiB')
    monkeypatch.setattr(self_check, 'difference', lambda *args, **options: fail(full))
    with pytest.raises(torch.OutOfMemoryError):
        backends.select('auto', CUDA, torch.float32)
    assert not native.CUDA._problems
