"""Kernels on a GPU, CUDA's and Triton's: streams, graphs, devices, memory, atomics.

Values are in test_native_* and test_triton*.
"""

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
from mmvim_ops import backends, loading
from mmvim_ops.backends.operators import OperatorBackend

Inputs = Callable[..., dict[str, Tensor]]
Case = tuple[Callable[..., Any], dict[str, Tensor]]

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='torch sees no GPU')
cuda_alone = pytest.mark.parametrize('kernels', ['cuda'], indirect=True)
SELECTIVE = ('u', 'delta', 'A', 'B', 'C', 'D', 'z', 'delta_bias')
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
generic = partial(mmvim_ops.selective_scan, delta_softplus=True, return_last_state=True)


def on(device: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}


@pytest.fixture(params=['cuda', 'triton'])
def kernels(request: pytest.FixtureRequest) -> OperatorBackend:
    """The backend whose kernels are tested, each in turn."""
    (backend,) = (each for each in backends.ORDER if each.name == request.param)
    problem = backend.unavailable()
    if problem is not None:
        pytest.skip(f'no kernels of {backend.name!r}: {problem}')
    assert isinstance(backend, OperatorBackend)
    return backend


@pytest.fixture
def cases(
    kernels: OperatorBackend, scan_inputs: Inputs, bidirectional_inputs: Inputs
) -> Callable[..., list[Case]]:
    """Both scans with inputs on a device: several blocks, tiles and chunks."""

    def make(seed: int = 0, device: str = 'cuda', **shape: Any) -> list[Case]:
        shape = dict(B=2, L=290, E=200, N=16, dtype=torch.float32) | shape
        one = scan_inputs(**shape, seed=seed)
        two = bidirectional_inputs(**shape, R=12, seed=seed)
        scans = (partial(scan, backend=kernels.name) for scan in (generic, bidirectional))
        return list(zip(scans, (on(device, one), on(device, two))))

    return make


@pytest.fixture
def force_splits() -> Iterator[Callable[[int, int], None]]:
    """Choose the threads a channel and direction, forwards and backwards."""
    yield loading.force_splits
    loading.force_splits()


def assert_same_bits(first: dict[str, Tensor], second: dict[str, Tensor], where: object) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), (name, where)


def results(outs: Any, leaves: list[Tensor]) -> dict[str, Tensor]:
    """Outputs and gradients by number; what outputs are weighted by is the same every time."""
    outs = outs if isinstance(outs, tuple) else (outs,)
    weights = [torch.ones_like(out) for out in outs]
    found = (*outs, *torch.autograd.grad(outs, leaves, weights))
    return {str(index): tensor.detach() for index, tensor in enumerate(found)}


def leaves_of(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone().requires_grad_() for name, tensor in inputs.items()}


def forward_and_backward(function: Callable[..., Any], inputs: dict[str, Tensor]) -> Any:
    leaves = leaves_of(inputs)
    return results(function(**leaves), list(leaves.values()))


# --- values ---


@cuda_alone
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('E', [70, 72])
@pytest.mark.parametrize('L', [1, 33, 160, 197])
def test_every_split(
    L: int,
    E: int,
    dtype: torch.dtype,
    cases: Any,
    value_and_grads: Inputs,
    assert_close: Any,
    force_splits: Any,
) -> None:
    """Rows of 72 channels are aligned: kernels for blocks of a Vim alone take them."""
    for function, inputs in cases(L=L, E=E, dtype=dtype):
        exact = {name: tensor.double().cpu() for name, tensor in inputs.items()}
        expected = value_and_grads(partial(function, backend='reference'), exact)
        for split in product((1, 2, 4, 8, 16), (4, 8, 16)):
            force_splits(*split)
            assert_close(value_and_grads(function, inputs), expected, where=split)


@cuda_alone
def test_atomic_sums_stay_within_tolerances(
    cases: Any, value_and_grads: Inputs, assert_close: Any
) -> None:
    """Blocks that add up in whatever order they come, many times."""
    for function, inputs in cases(E=768):
        exact = {name: tensor.double() for name, tensor in inputs.items()}
        expected = value_and_grads(partial(function, backend='chunked'), exact)
        expected = {name: tensor.cpu() for name, tensor in expected.items()}
        for turn in range(20):
            assert_close(value_and_grads(function, inputs), expected, where=turn)


@pytest.mark.usefixtures('deterministic')
def test_deterministic_sums(cases: Any) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for function, inputs in cases(E=768, dtype=dtype):
            first = forward_and_backward(function, inputs)
            for turn in range(20):
                assert_same_bits(forward_and_backward(function, inputs), first, turn)


@cuda_alone
@pytest.mark.usefixtures('deterministic')
def test_deterministic_sums_take_little_memory(cases: Any, assert_close: Any) -> None:
    """Parts of all tokens would take 138 to 554 MB, those of a launch 64 MiB."""
    ((_, _), (function, inputs)) = cases(L=8192, E=384)
    leaves = leaves_of(inputs)
    out = function(**leaves)
    found = []
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        grads = torch.autograd.grad(
            out, list(leaves.values()), torch.ones_like(out), retain_graph=True
        )
        peak = torch.cuda.max_memory_allocated() - before
        found.append((peak, {name: grad.cpu() for name, grad in zip(leaves, grads)}))
    (atomic, expected), (fixed, actual) = found
    assert fixed <= atomic + 100 * 2**20
    exact = {name: tensor.double() for name, tensor in expected.items()}
    assert_close(actual, exact)


def test_more_blocks_than_the_other_dimensions_of_a_grid_have(
    cases: Any, value_and_grads: Inputs, assert_close: Any
) -> None:
    for function, inputs in cases(B=70_000, L=2, E=5):
        exact = {name: tensor.double() for name, tensor in inputs.items()}
        expected = value_and_grads(partial(function, backend='chunked'), exact)
        found = value_and_grads(function, inputs)
        assert_close(found, {name: tensor.cpu() for name, tensor in expected.items()})


# --- inside torch ---


@cuda_alone
@pytest.mark.usefixtures('kernels')
@pytest.mark.parametrize('dtype', DTYPES)
def test_opcheck(dtype: torch.dtype, scan_inputs: Inputs, bidirectional_inputs: Inputs) -> None:
    p = on('cuda', scan_inputs(L=70, groups=2, dtype=dtype))
    one = [p[name] for name in SELECTIVE]
    two = list(on('cuda', bidirectional_inputs(L=70, dtype=dtype)).values())
    ops, options = torch.ops.mmvim, (True, True, 2, 32)
    for op, tensors, rest in (
        (ops.selective_scan.default, one, options),
        (ops.bidirectional_selective_scan.default, two, (0.5, False, 32)),
    ):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
        torch.library.opcheck(op, (*leaves, *rest))
    out, last_state, checkpoints = ops.selective_scan(*one, *options)
    torch.library.opcheck(
        ops.selective_scan_backward.default,
        (out, last_state, *one, checkpoints, *options, [True] * 8, True),
    )
    out, checkpoints = ops.bidirectional_selective_scan(*two, 0.5, False, 32)
    torch.library.opcheck(
        ops.bidirectional_selective_scan_backward.default,
        (out, *two, checkpoints, 0.5, 32, [True] * 13, True),
    )


@cuda_alone
@pytest.mark.usefixtures('kernels')
def test_opcheck_convolutions_and_norm() -> None:
    generator = torch.Generator().manual_seed(0)
    x, added = torch.randn(2, 2, 70, 40, generator=generator).to('cuda')
    w, bias = torch.randn(40, 4, generator=generator), torch.randn(40, generator=generator)
    x, added, w, bias = (t.to('cuda').requires_grad_() for t in (x, added, w, bias))
    ops = torch.ops.mmvim
    torch.library.opcheck(ops.conv1d_silu.default, (x, w, bias, True))
    torch.library.opcheck(ops.bi_conv1d_silu.default, (x, w, bias, w, None))
    torch.library.opcheck(ops.add_rms_norm.default, (x, added, bias, 1e-5))


@cuda_alone
def test_auto_takes_the_kernels(cases: Any) -> None:
    for function, inputs in cases():
        outs = function(**inputs), function(**inputs, **{'backend': 'auto'})
        first, second = (out[0] if isinstance(out, tuple) else out for out in outs)
        assert torch.equal(first, second)


@pytest.mark.usefixtures('deterministic')
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(dtype: torch.dtype, cases: Any) -> None:
    for function, inputs in cases(dtype=dtype):
        expected = forward_and_backward(function, inputs)
        with torch.autocast('cuda', dtype=dtype):
            assert_same_bits(forward_and_backward(function, inputs), expected, dtype)


# --- streams, graphs, devices ---


def test_nothing_waits_for_the_device(cases: Any) -> None:
    for function, inputs in cases():
        leaves = leaves_of(inputs)
        forward_and_backward(function, inputs)  # what torch itself does only once
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode('error')
        try:
            results(function(**leaves), list(leaves.values()))
        finally:
            torch.cuda.set_sync_debug_mode(before)


@pytest.mark.usefixtures('deterministic')
def test_graph_of_a_forward_and_a_backward_pass(cases: Any) -> None:
    """Captured once, replayed on other numbers: the same bits as without a graph."""
    for first, second in zip(cases(seed=0), cases(seed=1)):
        function, inputs = first
        leaves = leaves_of(inputs)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                results(function(**leaves), list(leaves.values()))
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = results(function(**leaves), list(leaves.values()))
        for _, given in (first, second, first):
            with torch.no_grad():
                for name, leaf in leaves.items():
                    leaf.copy_(given[name])
            graph.replay()
            expected = forward_and_backward(function, given)
            assert_same_bits(captured, expected, function)


def test_kernels_run_on_the_current_stream(cases: Any) -> None:
    """Inputs that arrive late, on a stream that is busy before."""
    for function, inputs in cases():
        expected = function(**inputs)
        late = {name: torch.zeros_like(tensor) for name, tensor in inputs.items()}
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(200_000_000)
            for name, tensor in inputs.items():
                late[name].copy_(tensor)
            found = function(**late)
        stream.synchronize()
        for got, want in zip(found, expected):
            assert torch.equal(got, want)


@pytest.mark.usefixtures('deterministic')
def test_two_streams_at_once(cases: Any) -> None:
    for (function, first), (_, second) in zip(cases(seed=0), cases(seed=1)):
        given = (first, second)
        expected = [forward_and_backward(function, inputs) for inputs in given]
        streams = [torch.cuda.Stream() for _ in given]
        torch.cuda.synchronize()
        found: list[list[dict[str, Tensor]]] = [[], []]
        for _ in range(20):
            for stream, inputs, into in zip(streams, given, found):
                with torch.cuda.stream(stream):
                    into.append(forward_and_backward(function, inputs))
        torch.cuda.synchronize()
        for want, runs in zip(expected, found):
            for turn, got in enumerate(runs):
                assert_same_bits(got, want, turn)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='there is one GPU at most')
@pytest.mark.usefixtures('deterministic')
def test_a_device_that_is_not_the_current_one(cases: Any) -> None:
    for (function, here), (_, there) in zip(cases(), cases(device='cuda:1')):
        expected = forward_and_backward(function, here)
        found = forward_and_backward(function, there)
        assert torch.cuda.current_device() == 0
        assert all(tensor.device.index == 1 for tensor in found.values())
        assert_same_bits({n: t.to('cuda:0') for n, t in found.items()}, expected, 'cuda:1')


# --- memory ---


def test_no_tensor_of_tokens_channels_and_states(cases: Any) -> None:
    """The peak of a training step stays far below the size of one, which is 1.6 GB."""
    B, L, E, N = 8, 8192, 384, 16
    for function, inputs in cases(B=B, L=L, E=E, N=N, dtype=torch.bfloat16):
        leaves = leaves_of(inputs)
        values = list(leaves.values())
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        results(function(**leaves), values)
        peak = torch.cuda.max_memory_allocated() - before
        # Outputs, gradients and float32 partial results come to a quarter of it.
        assert 0 < peak < B * L * E * N * 4 // 2, peak


def test_what_a_forward_pass_keeps(cases: Any, kernels: Any) -> None:
    """Its output, and the states before every chunk of tokens."""
    for function, inputs in cases(B=2, L=8192, E=384, dtype=torch.bfloat16):
        leaves = leaves_of(inputs)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        out = function(**leaves)
        kept = torch.cuda.memory_allocated() - before
        out = out[0] if isinstance(out, tuple) else out
        directions = 2 if 'x_f' in inputs else 1
        states = directions * out.numel() // kernels.chunk * 16 * 4
        assert kept < 1.1 * (out.numel() * 2 + states), function
        del out
