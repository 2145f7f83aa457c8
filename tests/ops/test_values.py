"""The chunked implementation against the float64 reference, and properties both must have."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from mmvim_ops_by_name import Ops, bidirectional
from torch import Tensor

import mmvim_ops
from mmvim_ops import reference
from mmvim_ops.pure_torch.recurrence import Recurrence

Inputs = Callable[..., dict[str, Tensor]]
chunked = Ops('chunked')
implementations = pytest.mark.parametrize('ops', [Ops('reference'), chunked], ids=repr)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# Every length beside a chunk boundary, each with some E, N and B.
SIZES = [
    (1, 5, 4, 3),
    (2, 33, 16, 1),
    (31, 40, 8, 1),
    (32, 16, 32, 3),
    (33, 7, 16, 1),
    (63, 100, 16, 1),
    (64, 48, 4, 3),
    (65, 96, 16, 1),
    (127, 20, 8, 1),
    (128, 3, 32, 1),
    (129, 64, 16, 3),
    (197, 72, 16, 1),
    (1025, 10, 16, 1),
]


def double(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in tensors.items()}


@pytest.mark.parametrize(('L', 'E', 'N', 'B'), SIZES)
@pytest.mark.parametrize('reverse', [False, True])
def test_selective_scan_float32(
    L: int,
    E: int,
    N: int,
    B: int,
    reverse: bool,
    scan_inputs: Inputs,
    value_and_grads: Inputs,
    assert_close: Any,
) -> None:
    inputs = scan_inputs(B=B, L=L, E=E, N=N, dtype=torch.float32)
    options = dict(delta_softplus=True, reverse=reverse)
    actual = value_and_grads(chunked.selective_scan, inputs, **options)
    expected = value_and_grads(reference.selective_scan, double(inputs), **options)
    assert_close(actual, expected)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('gated', [True, False])
@pytest.mark.parametrize('wide_out', [True, False])
@pytest.mark.parametrize(
    ('backend', 'L', 'E', 'N', 'B', 'R'),
    [
        ('chunked', 65, 24, 16, 3, 2),
        ('chunked', 197, 40, 4, 1, 5),
        ('chunked', 65, 24, 1, 2, 3),
        ('reference', 33, 5, 4, 2, 3),
        ('reference', 33, 5, 1, 2, 3),
    ],
)
def test_bidirectional(
    backend: str,
    L: int,
    E: int,
    N: int,
    B: int,
    R: int,
    wide_out: bool,
    gated: bool,
    dtype: torch.dtype,
    bidirectional_inputs: Inputs,
    value_and_grads: Inputs,
    assert_close: Any,
) -> None:
    """With a gate and without; sums that are rounded to the dtype of the inputs or not."""
    inputs = bidirectional_inputs(B=B, L=L, E=E, N=N, R=R, dtype=dtype)
    if not gated:
        del inputs['z']
    out_dtype = torch.promote_types(dtype, torch.float32) if wide_out else None
    options = dict(scale=0.7, out_dtype=out_dtype, backend=backend)
    actual = value_and_grads(bidirectional, inputs, **options)
    expected = value_and_grads(bidirectional, double(inputs), scale=0.7, backend='reference')
    assert actual['out'].dtype == (out_dtype or dtype)
    for name, tensor in inputs.items():
        assert actual[f'grad of {name}'].dtype == tensor.dtype
    assert_close(actual, expected)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('groups', [1, 3])
def test_selective_scan_dtypes(
    dtype: torch.dtype,
    groups: int,
    scan_inputs: Inputs,
    value_and_grads: Inputs,
    assert_close: Any,
) -> None:
    inputs = scan_inputs(B=2, L=130, E=24, N=8, groups=groups, dtype=dtype)
    options = dict(delta_softplus=True, groups=groups)
    expected = value_and_grads(reference.selective_scan, double(inputs), **options)
    for backend in ('chunked', 'reference'):
        actual = value_and_grads(mmvim_ops.selective_scan, inputs, backend=backend, **options)
        assert actual['out'].dtype == dtype
        assert_close(actual, expected)


@pytest.mark.parametrize(
    ('rate', 'step'),
    [(-1e-4, 1e-3), (-1e-3, 1e-2), (-50.0, 3.0), (-3e4, 10.0)],
    ids=['slowest', 'slow', 'underflow', 'hard underflow'],
)
def test_extreme_decays(
    rate: float, step: float, scan_inputs: Inputs, value_and_grads: Inputs, assert_close: Any
) -> None:
    """Decays within 1e-7 of one, and decays that are zero in float32."""
    inputs = scan_inputs(B=1, L=1025, E=8, N=4, dtype=torch.float32)
    inputs['A'] = inputs['A'].abs().clamp(0.5, 2.0) * rate
    torch.manual_seed(0)
    inputs['delta'] = (0.5 + torch.rand(inputs['delta'].shape)) * step
    del inputs['delta_bias']
    actual = value_and_grads(chunked.selective_scan, inputs)
    expected = value_and_grads(reference.selective_scan, double(inputs))
    # Where decays underflow, the exact gradients of A and delta hold terms below float32's range.
    assert_close(actual, expected)


@implementations
def test_softplus_threshold(ops: Ops, scan_inputs: Inputs) -> None:
    """Beyond 20 the step is the identity, gradient included, as in torch's softplus."""
    inputs = scan_inputs(L=6, E=1, B=1)
    values = [19.0, 19.999999, 20.0, 20.000001, 25.0, 60.0]
    raw = torch.tensor(values, dtype=torch.float64).view(1, 6, 1)
    inputs['delta'] = raw.clone().requires_grad_()
    del inputs['delta_bias'], inputs['z']
    outside = torch.nn.functional.softplus(raw.requires_grad_())
    a = ops.selective_scan(**inputs, delta_softplus=True)
    b = ops.selective_scan(**(inputs | {'delta': outside}))
    torch.testing.assert_close(a, b, rtol=1e-14, atol=0.0)
    (grad_a,) = torch.autograd.grad(a.sum(), inputs['delta'])
    (grad_b,) = torch.autograd.grad(b.sum(), raw)
    torch.testing.assert_close(grad_a, grad_b, rtol=1e-13, atol=0.0)


@implementations
@pytest.mark.parametrize('L', [1, 7, 70])
def test_reverse_is_a_flip_of_everything(ops: Ops, L: int, scan_inputs: Inputs) -> None:
    inputs = scan_inputs(L=L)
    flipped = {n: t.flip(1) if n in ('u', 'delta', 'B', 'C', 'z') else t for n, t in inputs.items()}
    options = dict(delta_softplus=True, return_last_state=True)
    out, state = ops.selective_scan(**inputs, reverse=True, **options)
    expected, expected_state = ops.selective_scan(**flipped, **options)
    torch.testing.assert_close(out, expected.flip(1), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(state, expected_state, rtol=1e-13, atol=1e-13)

    x, weight = inputs['u'], inputs['A']
    mirrored = ops.conv1d_silu(x.flip(1), weight, inputs['D']).flip(1)
    torch.testing.assert_close(ops.conv1d_silu(x, weight, inputs['D'], reverse=True), mirrored)


@implementations
def test_causality(ops: Ops, scan_inputs: Inputs) -> None:
    """A token acts on itself and on what is scanned after it, on nothing before it."""
    inputs = scan_inputs(B=1, L=100)
    changed = {name: tensor.clone() for name, tensor in inputs.items()}
    changed['u'][:, 70] += 1.0
    for reverse in (False, True):
        out = ops.selective_scan(**inputs, delta_softplus=True, reverse=reverse)
        other = ops.selective_scan(**changed, delta_softplus=True, reverse=reverse)
        touched = (out != other).any(-1)[0]
        before, after = (touched[71:], touched[:71]) if reverse else (touched[:70], touched[70:])
        assert not before.any()
        assert after[-1] if reverse else after[0]
        assert after.float().mean() > 0.2


@implementations
def test_bidirectional_is_its_two_scans(ops: Ops, bidirectional_inputs: Inputs) -> None:
    p = bidirectional_inputs(L=70, E=6, N=4, R=3)
    expected = torch.zeros_like(p['z'])
    for d, reverse in (('f', False), ('b', True)):
        dt, B, C = p[f'dbl_{d}'].split((3, 4, 4), dim=-1)
        delta = dt @ p[f'dt_w_{d}'].t()
        expected += ops.selective_scan(
            *(p[f'x_{d}'], delta, p[f'A_{d}'], B, C, p[f'D_{d}'], p['z'], p[f'dt_b_{d}']),
            delta_softplus=True,
            reverse=reverse,
        )
    out = ops.bidirectional(**p, scale=0.25)
    torch.testing.assert_close(out, expected * 0.25, rtol=1e-12, atol=1e-12)


def test_directions_may_share_their_tensors(
    bidirectional_inputs: Inputs, assert_close: Any
) -> None:
    """The published v1: one convolution, one x_proj and dt_proj, one D, two decays."""
    p = bidirectional_inputs(L=70)
    results = []
    for ops in (chunked, Ops('reference')):
        x, dbl, w, b, A_f, A_b, D, z = (
            p[name].clone().requires_grad_()
            for name in ('x_f', 'dbl_f', 'dt_w_f', 'dt_b_f', 'A_f', 'A_b', 'D_f', 'z')
        )
        leaves = (x, dbl, w, b, A_f, A_b, D, z)
        out = ops.bidirectional(x, x, dbl, dbl, w, w, b, b, A_f, A_b, D, D, z, scale=1.0)
        grads = torch.autograd.grad(out.square().sum(), leaves)
        results.append({'out': out.detach()} | {str(i): g for i, g in enumerate(grads)})
    assert_close(*results)


def test_views(bidirectional_inputs: Inputs) -> None:
    """x and z as halves of one tensor, transposed and expanded inputs: all but the last bit."""
    p = bidirectional_inputs(L=70, dtype=torch.float32)
    expected = bidirectional(**p)
    xz = torch.cat((p['x_f'], p['z']), dim=-1)
    views = dict(p)
    views['x_f'], views['z'] = xz.chunk(2, dim=-1)
    views['x_b'] = p['x_b'].transpose(1, 2).contiguous().transpose(1, 2)
    views['A_f'] = p['A_f'].t().contiguous().t()
    close = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-6)
    close(bidirectional(**views), expected)

    one_batch = {n: t[:1].expand_as(t) if t.dim() == 3 else t for n, t in p.items()}
    copied = {n: t.contiguous() for n, t in one_batch.items()}
    actual = bidirectional(**one_batch)
    close(actual, bidirectional(**copied))
    close(*(mmvim_ops.conv1d_silu(x, p['A_f']) for x in (views['x_b'], p['x_b'])))


@implementations
@pytest.mark.parametrize('softplus', [False, True])
def test_last_state_has_a_gradient(
    ops: Ops, softplus: bool, scan_inputs: Inputs, value_and_grads: Inputs, assert_close: Any
) -> None:
    inputs = scan_inputs(L=70)
    if not softplus:
        inputs['delta'], inputs['delta_bias'] = inputs['delta'].abs(), inputs['delta_bias'].abs()
    options = dict(delta_softplus=softplus, return_last_state=True)

    def state_of(function: Any) -> Any:
        return lambda **kw: function(**kw, **options)[1] + 0 * function(**kw, **options)[0].sum()

    actual = value_and_grads(state_of(ops.selective_scan), inputs)
    expected = value_and_grads(state_of(reference.selective_scan), inputs)
    assert_close(actual, expected)
    only = ops.selective_scan(**inputs, **options)[1]
    assert only.shape == (2, 6, 4)


def test_last_state_alone(scan_inputs: Inputs) -> None:
    """The output unused: its gradient is undefined, not zeros."""
    inputs = scan_inputs(L=70)
    grads = []
    for ops in (chunked, Ops('reference')):
        u = inputs['u'].clone().requires_grad_()
        _, state = ops.selective_scan(
            **(inputs | {'u': u}), delta_softplus=True, return_last_state=True
        )
        grads.append(torch.autograd.grad(state.sum(), u)[0])
    torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize('backend', ['chunked', 'reference'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_empty_batch(
    backend: str,
    dtype: torch.dtype,
    scan_inputs: Inputs,
    bidirectional_inputs: Inputs,
    value_and_grads: Inputs,
) -> None:
    for function, inputs in (
        (mmvim_ops.selective_scan, scan_inputs(B=0, dtype=dtype)),
        (bidirectional, bidirectional_inputs(B=0, dtype=dtype)),
    ):
        result = value_and_grads(function, inputs, backend=backend)
        assert result['out'].shape == (0, 17, 6)
        assert result['out'].dtype == dtype
        for name, tensor in inputs.items():
            grad = result[f'grad of {name}']
            assert grad.shape == tensor.shape
            assert grad.dtype == tensor.dtype
            assert not grad.any()
    x, weight = torch.zeros(0, 5, 6), torch.ones(6, 4, requires_grad=True)
    out = mmvim_ops.conv1d_silu(x, weight, backend=backend)
    (grad,) = torch.autograd.grad(out.sum(), weight)
    assert out.shape == (0, 5, 6) and not grad.any()


def test_repeated_runs_give_the_same_bits(
    bidirectional_inputs: Inputs, value_and_grads: Inputs
) -> None:
    inputs = bidirectional_inputs(B=3, L=197, E=40, N=16, dtype=torch.float32)
    first = value_and_grads(chunked.bidirectional, inputs)
    second = value_and_grads(chunked.bidirectional, inputs)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_only_needed_gradients(scan_inputs: Inputs, bidirectional_inputs: Inputs) -> None:
    """Any subset of inputs may require gradients; each gets the one it gets among all."""
    generic = partial(chunked.selective_scan, delta_softplus=True)
    for function, inputs in (
        (generic, scan_inputs(L=70)),
        (chunked.bidirectional, bidirectional_inputs(L=70)),
    ):
        everything = {n: t.clone().requires_grad_() for n, t in inputs.items()}
        wanted = torch.autograd.grad(function(**everything).sum(), tuple(everything.values()))
        for name, expected in zip(everything, wanted):
            leaf = inputs[name].clone().requires_grad_()
            (grad,) = torch.autograd.grad(function(**(inputs | {name: leaf})).sum(), leaf)
            torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize('T', [*range(1, 20), 31, 32, 33, 64, 100])
@pytest.mark.parametrize('backwards', [False, True])
@pytest.mark.parametrize('tree', [False, True])
def test_recurrence(T: int, backwards: bool, tree: bool) -> None:
    """Tree and steps against the definition, on a part of the buffers, with a decay of zero."""
    torch.manual_seed(T)
    decay = torch.rand(T + 3, 2, 3, dtype=torch.float64)
    rows = torch.randn(T + 4, 2, 3, dtype=torch.float64)
    decay[T // 2] = 0
    expected = list(rows.unbind(0))
    for t in reversed(range(T)) if backwards else range(T):
        source, target = (t + 1, t) if backwards else (t, t + 1)
        expected[target] = expected[target] + decay[t] * expected[source]
    exponent = decay.log2() if tree else None
    kept = decay.clone()
    Recurrence(decay, rows, exponent, backwards).run(T)
    torch.testing.assert_close(rows, torch.stack(expected), rtol=1e-13, atol=1e-13)
    assert torch.equal(decay, kept)


@pytest.mark.parametrize('E', [8, 256], ids=['tree', 'steps'])
def test_slow_decays_do_not_drift(E: int, scan_inputs: Inputs, assert_close: Any) -> None:
    """Memory of 10,000 tokens: rounding that always goes one way would add up to 2e-6."""
    inputs = scan_inputs(B=1, L=2049, E=E, N=4, dtype=torch.float32)
    inputs['A'] = -0.01 * inputs['A'].abs().clamp(0.5, 2.0)
    torch.manual_seed(0)
    inputs['delta'] = 0.01 * (0.5 + torch.rand(1, 2049, E))
    del inputs['delta_bias']
    actual = {'out': chunked.selective_scan(**inputs)}
    expected = {'out': reference.selective_scan(**double(inputs))}
    assert_close(actual, expected, (4e-6, 1e-6))
