"""The operators inside torch: opcheck, compile, export, autocast, memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from mmvim_ops_by_name import bidirectional, needs_native, unchanged
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import mmvim_ops
from mmvim_ops import loading
from mmvim_ops.pure_torch import scans

Inputs = Callable[..., dict[str, Tensor]]
SELECTIVE = ('u', 'delta', 'A', 'B', 'C', 'D', 'z', 'delta_bias')


class LargestTensor(TorchDispatchMode):
    """Remembers the element count of the largest tensor that any call made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return result


# The operators of the compiled kernels, where there are some, and those that are pure torch.
FAMILIES = [
    ('', torch.float32),
    ('', torch.bfloat16),
    ('chunked_', torch.float32),
    ('chunked_', torch.bfloat16),
    ('chunked_', torch.float64),
]


def operator(family: str, name: str) -> Any:
    return getattr(torch.ops.mmvim, f'{family}{name}').default


@pytest.mark.parametrize(('family', 'dtype'), FAMILIES)
@pytest.mark.parametrize('optional', [True, False])
def test_opcheck_selective_scan(
    family: str, dtype: torch.dtype, optional: bool, scan_inputs: Inputs
) -> None:
    inputs = scan_inputs(L=9, groups=2, dtype=dtype)
    tensors: list[Tensor | None] = [inputs[name].requires_grad_() for name in SELECTIVE]
    if not optional:
        tensors[1] = inputs['delta'].detach().abs().requires_grad_()
        tensors[5:] = [None, None, None]
    torch.library.opcheck(operator(family, 'selective_scan'), (*tensors, optional, optional, 2, 4))


@pytest.mark.parametrize(('family', 'dtype'), FAMILIES)
@pytest.mark.parametrize(('gated', 'wide_out'), [(True, False), (True, True), (False, True)])
def test_opcheck_bidirectional(
    gated: bool, wide_out: bool, family: str, dtype: torch.dtype, bidirectional_inputs: Inputs
) -> None:
    inputs = bidirectional_inputs(L=9, dtype=dtype)
    tensors: list[Tensor | None] = [tensor.requires_grad_() for tensor in inputs.values()]
    if not gated:
        tensors[-1] = None
    options = (0.5, wide_out, 4)
    torch.library.opcheck(operator(family, 'bidirectional_selective_scan'), (*tensors, *options))


@pytest.mark.parametrize(('family', 'dtype'), FAMILIES)
def test_opcheck_backwards(
    family: str, dtype: torch.dtype, scan_inputs: Inputs, bidirectional_inputs: Inputs
) -> None:
    """The backward operators have schemas and shape rules of their own."""
    p = scan_inputs(L=9, groups=2, dtype=dtype)
    tensors = [p[name] for name in SELECTIVE]
    options = (True, True, 2, 4)
    out, last_state, checkpoints = operator(family, 'selective_scan')(*tensors, *options)
    for needs in ([True] * 8, [True, False] * 4):
        torch.library.opcheck(
            operator(family, 'selective_scan_backward'),
            (out, last_state, *tensors, checkpoints, *options, needs, True),
        )
    *rest, z = bidirectional_inputs(L=9, dtype=dtype).values()
    for gate, wide_out in ((z, False), (None, True)):
        inputs = (*rest, gate)
        scan = operator(family, 'bidirectional_selective_scan')
        out, checkpoints = scan(*inputs, 0.5, wide_out, 4)
        for needs in ([True] * 13, [True, False] * 6 + [False]):
            torch.library.opcheck(
                operator(family, 'bidirectional_selective_scan_backward'),
                (out, *inputs, checkpoints, 0.5, 4, needs, True),
            )


@pytest.mark.parametrize(('family', 'dtype'), FAMILIES[:4])
@pytest.mark.parametrize('bias', [True, False])
def test_opcheck_convolutions(family: str, dtype: torch.dtype, bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, grad = torch.randn(2, 2, 7, 5, generator=generator).to(dtype)
    weight = torch.randn(5, 4, generator=generator)
    offset = torch.randn(5, generator=generator) if bias else None
    one = [t if t is None else t.requires_grad_() for t in (x, weight, offset)]
    torch.library.opcheck(operator(family, 'conv1d_silu'), (*one, True))
    torch.library.opcheck(operator(family, 'bi_conv1d_silu'), (*one, *one[1:]))
    with torch.no_grad():
        for needs in ([True] * 3, [False, True, False]):
            torch.library.opcheck(
                operator(family, 'conv1d_silu_backward'), (grad, *one, True, needs)
            )
        for needs in ([True] * 5, [True, False, False, True, False]):
            torch.library.opcheck(
                operator(family, 'bi_conv1d_silu_backward'), (grad, grad, *one, *one[1:], needs)
            )


@pytest.mark.parametrize(('family', 'dtype'), FAMILIES[:4])
def test_opcheck_norm(family: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 7, 5, generator=generator).requires_grad_()
    added = torch.randn(2, 7, 5, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(5, generator=generator).requires_grad_()
    torch.library.opcheck(operator(family, 'add_rms_norm'), (x, added, weight, 1e-5))
    with torch.no_grad():
        normed, total, scales = operator(family, 'add_rms_norm')(x, added, weight, 1e-5)
        for grad_total in (total, None):
            torch.library.opcheck(
                operator(family, 'add_rms_norm_backward'),
                (normed, grad_total, total, scales, weight),
            )


def mixer_core(x: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
    """Both convolutions and the scan, as a Vim block calls them."""
    x_f, x_b = mmvim_ops.bi_conv1d_silu(x, weight, None, weight, None)
    return bidirectional(x_f, x_b, *rest)


@pytest.mark.parametrize(
    'compiler', ['aot_eager', pytest.param('inductor', marks=pytest.mark.slow)]
)
def test_compile(
    compiler: str, bidirectional_inputs: Inputs, value_and_grads: Inputs, assert_close: Any
) -> None:
    """fullgraph, forward and backward; a second length compiles with symbolic sizes."""
    torch._dynamo.reset()
    compiled = torch.compile(mixer_core, fullgraph=True, backend=compiler)
    for L in (33, 70):
        p = bidirectional_inputs(L=L, dtype=torch.float32)
        tensors = [p['x_f'], p['A_f'], *list(p.values())[2:]]
        named = {str(index): tensor for index, tensor in enumerate(tensors)}
        actual = value_and_grads(lambda **kw: compiled(*kw.values()), named)
        expected = value_and_grads(lambda **kw: mixer_core(*kw.values()), named)
        assert_close(actual, expected, (2e-6, 5e-7), (2e-5, 5e-6))


def test_export(bidirectional_inputs: Inputs) -> None:
    class Core(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return mixer_core(*tensors)

    p = bidirectional_inputs(dtype=torch.float32)
    tensors = (p['x_f'], p['A_f'], *list(p.values())[2:])
    program = torch.export.export(Core(), tensors)
    called = {str(node.target) for node in program.graph.nodes}
    family = '' if loading.problem() is None else 'chunked_'
    assert f'mmvim.{family}bidirectional_selective_scan.default' in called
    assert torch.equal(program.module()(*tensors), mixer_core(*tensors))


@pytest.mark.parametrize('backend', ['chunked', 'reference'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(
    backend: str,
    dtype: torch.dtype,
    scan_inputs: Inputs,
    bidirectional_inputs: Inputs,
    value_and_grads: Inputs,
) -> None:
    """The same with and without, so nothing inside ran in half precision."""
    generic = partial(mmvim_ops.selective_scan, delta_softplus=True)
    for function, inputs in (
        (generic, scan_inputs(L=70, dtype=dtype)),
        (bidirectional, bidirectional_inputs(L=70, dtype=dtype)),
    ):
        expected = value_and_grads(function, inputs, backend=backend)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            out = function(**inputs, backend=backend)
            if backend == 'chunked':  # whose backward guards itself, even in here
                actual = value_and_grads(function, inputs, backend=backend)
                assert all(unchanged(actual[n], expected[n], backend) for n in expected)
        assert out.dtype == dtype
        assert unchanged(out, expected['out'], backend)


def test_autocast_on_the_operator_itself(scan_inputs: Inputs) -> None:
    inputs = scan_inputs(L=70, dtype=torch.float32)
    arguments = (*(inputs[name] for name in SELECTIVE), True, False, 1, 16)
    expected = torch.ops.mmvim.selective_scan(*arguments)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        actual = torch.ops.mmvim.selective_scan(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected))


def test_half_precision_state_is_float32(scan_inputs: Inputs) -> None:
    """A sum of many small steps that bfloat16 would round away, and one that float16 overflows."""
    L = 2000
    ones = torch.ones(1, L, 1, dtype=torch.bfloat16)
    A = torch.full((1, 1), -1e-9)
    step = torch.full((1, L, 1), 1e-3, dtype=torch.bfloat16)
    _, state = mmvim_ops.selective_scan(ones, step, A, ones, ones, return_last_state=True)
    assert state.dtype == torch.float32
    torch.testing.assert_close(state, step.float().sum().view(1, 1, 1), rtol=1e-4, atol=0.0)
    big = torch.full((1, L, 1), 100.0, dtype=torch.float16)
    tiny = torch.full((1, L, 1), 1e-5, dtype=torch.float16)
    out = mmvim_ops.selective_scan(big, big / 10, A, big / 10, tiny)
    assert torch.isfinite(out).all()


def test_no_large_tensor(scan_inputs: Inputs, bidirectional_inputs: Inputs) -> None:
    """Forward and backward never hold tokens x channels x states for more than one chunk."""
    L, E, N, chunk = 256, 40, 16, 16
    p = scan_inputs(B=1, L=L, E=E, N=N, dtype=torch.float32)
    tensors = [p[name] for name in SELECTIVE]
    with LargestTensor() as forward:
        results = scans.selective_forward(*tensors, True, False, 1, chunk)
    with LargestTensor() as backward:
        scans.selective_backward(
            results[0], None, *tensors, results[2], True, False, 1, chunk, [True] * 8, True
        )
    assert 0 < forward.elements <= (chunk + 1) * E * N
    assert 0 < backward.elements <= (chunk + 1) * E * N

    tensors = list(bidirectional_inputs(B=1, L=L, E=E, N=N, dtype=torch.float32).values())
    with LargestTensor() as forward:
        results = scans.bidirectional_forward(*tensors, 0.5, False, chunk)
    with LargestTensor() as backward:
        scans.bidirectional_backward(
            results[0], *tensors, results[1], 0.5, chunk, [True] * 13, True
        )
    assert 0 < forward.elements <= (chunk + 1) * 2 * E * N
    assert 0 < backward.elements <= (chunk + 1) * 2 * E * N


def test_saved_for_backward(bidirectional_inputs: Inputs) -> None:
    """Beside its inputs, an op saves a state a chunk."""
    p = bidirectional_inputs(B=1, L=256, E=40, N=16, dtype=torch.float32)
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    leaves = [tensor.requires_grad_() for tensor in p.values()]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        bidirectional(*leaves, backend='chunked')
    given = {leaf.data_ptr() for leaf in leaves}
    extra = [tensor for tensor in saved if tensor.data_ptr() not in given]
    assert [tensor.shape for tensor in extra] == [(4, 1, 2, 16, 40)]


@pytest.mark.parametrize('backend', ['chunked', pytest.param('cpu', marks=needs_native)])
def test_who_follows_a_call_gets_the_same_gradients(
    backend: str, bidirectional_inputs: Inputs
) -> None:
    """An operator is differentiated in three ways: alone, under a mode and under a transform."""
    inputs = bidirectional_inputs(L=70, dtype=torch.float32)

    def scan(**tensors: Tensor) -> Tensor:
        return bidirectional(**tensors, backend=backend)

    def followed(**tensors: Tensor) -> Tensor:
        with LargestTensor():
            return scan(**tensors)

    def gradients(run: Callable[..., Tensor]) -> dict[str, Tensor]:
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
        out = run(**leaves)
        return dict(zip(leaves, torch.autograd.grad(out, list(leaves.values()), weight)))

    out, pull = torch.func.vjp(lambda given: scan(**given), inputs)
    weight = torch.randn(out.shape)
    (transformed,) = pull(weight)
    alone, under_mode = gradients(scan), gradients(followed)
    for name in inputs:
        assert unchanged(under_mode[name], alone[name], backend), name
        assert unchanged(transformed[name], alone[name], backend), name


@pytest.mark.parametrize(('family', 'dtype'), FAMILIES)
@pytest.mark.parametrize('gated', [True, False])
@pytest.mark.parametrize('wide_out', [True, False])
def test_gate_and_width_of_the_sums(
    wide_out: bool,
    gated: bool,
    family: str,
    dtype: torch.dtype,
    bidirectional_inputs: Inputs,
    value_and_grads: Inputs,
    assert_close: Any,
) -> None:
    """Without a gate as with one that is 1; wide sums are not rounded to the inputs' dtype."""
    inputs = bidirectional_inputs(L=70, dtype=dtype)
    z = inputs.pop('z')
    one = torch.full_like(z, 1.2784645427610738, dtype=torch.float64)  # silu of that is 1

    def expected(z: Tensor = one, **tensors: Tensor) -> Tensor:
        return bidirectional(**tensors, z=z, backend='reference')

    def scan(z: Tensor | None = None, **tensors: Tensor) -> Tensor:
        run = operator(family, 'bidirectional_selective_scan')
        out: Tensor = run(*tensors.values(), z, 0.5, wide_out, 32)[0]
        return out

    if gated:
        inputs['z'] = z
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    actual = value_and_grads(scan, inputs)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert actual['out'].dtype == (wide if wide_out else dtype)
    for name, tensor in inputs.items():
        assert actual[f'grad of {name}'].dtype == tensor.dtype
    assert_close(actual, value_and_grads(expected, exact))
