"""All implementations against what the published code computes: pure torch in float64, the compiled
kernels in float32, which the goldens allow atol 2e-5 and rtol 1e-5, and gradients 1e-4 of the
largest value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmvim_ops_by_name import Ops
from torch import Tensor

Golden = Callable[[str], dict[str, Tensor]]
implementations = pytest.mark.parametrize('ops', [Ops('reference'), Ops('chunked')], ids=repr)
ACTIVATIONS = ('u', 'delta', 'B', 'C', 'z')


@implementations
@pytest.mark.parametrize('case', ['L1', 'L5', 'L64', 'L197', 'L1025', 'hard'])
def test_selective_scan(ops: Ops, case: str, golden: Golden) -> None:
    data = golden('selective_scan')
    names = ('u', 'delta', 'A', 'B', 'C', 'D', 'z', 'delta_bias')
    leaves = {name: data[f'{case}.{name}'].requires_grad_() for name in names}
    inputs = {n: t.transpose(1, 2) if n in ACTIVATIONS else t for n, t in leaves.items()}
    out, last_state = ops.selective_scan(**inputs, delta_softplus=True, return_last_state=True)
    tolerance = dict(rtol=1e-9, atol=0.0) if case == 'hard' else dict(rtol=0.0, atol=1e-10)

    torch.testing.assert_close(out, data[f'{case}.out'].transpose(1, 2), **tolerance)
    torch.testing.assert_close(last_state, data[f'{case}.last_state'], **tolerance)
    grads = torch.autograd.grad(
        out, tuple(leaves.values()), data[f'{case}.w'].transpose(1, 2).contiguous()
    )
    for name, grad in zip(leaves, grads):
        expected = data[f'{case}.grad.{name}']
        scale = float(expected.abs().max())
        torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-10 * max(scale, 1.0))

    if case != 'hard':  # the golden without D and z
        bare_inputs = {n: t.detach() for n, t in inputs.items() if n not in ('D', 'z')}
        bare = ops.selective_scan(**bare_inputs, delta_softplus=True)
        torch.testing.assert_close(bare, data[f'{case}.out_bare'].transpose(1, 2), **tolerance)


@implementations
@pytest.mark.parametrize('length', [1, 3, 10])
@pytest.mark.parametrize('width', [2, 3, 4])
def test_causal_conv1d(ops: Ops, width: int, length: int, golden: Golden) -> None:
    data, case = golden('causal_conv1d'), f'W{width}_L{length}'
    x = data[f'{case}.x'].transpose(1, 2)
    weight, bias = data[f'{case}.weight'], data[f'{case}.bias']
    out = ops.conv1d_silu(x, weight, bias).transpose(1, 2)
    torch.testing.assert_close(out, data[f'{case}.out_silu'], rtol=0.0, atol=1e-10)
    out = ops.conv1d_silu(x, weight).transpose(1, 2)
    torch.testing.assert_close(out, data[f'{case}.out_nobias_silu'], rtol=0.0, atol=1e-10)


def assert_near(actual: Tensor, golden: Tensor) -> None:
    torch.testing.assert_close(actual.cpu(), golden.float(), rtol=1e-5, atol=2e-5)


def assert_grads_near(grads: dict[str, Tensor], golden: dict[str, Tensor], prefix: str) -> None:
    for name, grad in grads.items():
        expected = golden[f'{prefix}{name}'].float()
        largest = float(expected.abs().max())
        torch.testing.assert_close(grad.cpu(), expected, rtol=0.0, atol=1e-4 * largest, msg=name)


@pytest.mark.parametrize('case', ['L1', 'L5', 'L64', 'L197', 'L1025', 'hard'])
def test_native_selective_scan(case: str, golden: Golden, each_kernels: Iterator[Any]) -> None:
    data = golden('selective_scan')
    names = ('u', 'delta', 'A', 'B', 'C', 'D', 'z', 'delta_bias')
    single = {name: data[f'{case}.{name}'].float() for name in names}
    weight = data[f'{case}.w'].transpose(1, 2).float()
    for kernels in each_kernels:
        leaves = {n: t.detach().requires_grad_() for n, t in kernels.place(single).items()}
        inputs = {n: t.transpose(1, 2) if n in ACTIVATIONS else t for n, t in leaves.items()}
        out, last_state = Ops(kernels.backend).selective_scan(
            **inputs, delta_softplus=True, return_last_state=True
        )
        assert_near(out, data[f'{case}.out'].transpose(1, 2))
        assert_near(last_state, data[f'{case}.last_state'])
        grads = torch.autograd.grad(out, tuple(leaves.values()), weight.to(kernels.device))
        assert_grads_near(dict(zip(leaves, grads)), data, f'{case}.grad.')


@pytest.mark.parametrize('length', [1, 3, 10])
@pytest.mark.parametrize('width', [2, 3, 4])
def test_native_conv1d(
    width: int, length: int, golden: Golden, each_kernels: Iterator[Any]
) -> None:
    data, case = golden('causal_conv1d'), f'W{width}_L{length}'
    single = {name: data[f'{case}.{name}'].float() for name in ('x', 'weight', 'bias')}
    for kernels in each_kernels:
        x, weight, bias = kernels.place(single).values()
        x = x.transpose(1, 2)
        conv = Ops(kernels.backend).conv1d_silu
        out = conv(x, weight, bias).transpose(1, 2)
        assert_near(out, data[f'{case}.out_silu'])
        assert_near(conv(x, weight).transpose(1, 2), data[f'{case}.out_nobias_silu'])


MIXERS = pytest.mark.parametrize('case', ['v2_div', 'v2', 'v1', 'none'])


def mixer(ops: Ops, case: str, data: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The published mixer, built from the ops, and all of its gradients."""
    prefix = f'{case}.param.'
    p = {k[len(prefix) :]: v.requires_grad_() for k, v in data.items() if k.startswith(prefix)}
    h = data['x'].requires_grad_()
    x, z = (h @ p['in_proj.weight'].t()).chunk(2, dim=-1)
    A = -torch.exp(p['A_log'])

    def conv(suffix: str, reverse: bool) -> Tensor:
        weight = p[f'conv1d{suffix}.weight'].squeeze(1)
        out = ops.conv1d_silu(x, weight, p[f'conv1d{suffix}.bias'], reverse)
        assert isinstance(out, Tensor)
        return out

    x_f = conv('', reverse=False)
    dbl_f = x_f @ p['x_proj.weight'].t()
    if case == 'none':
        states, rank = A.shape[1], p['dt_proj.weight'].shape[1]
        dt, B, C = dbl_f.split((rank, states, states), dim=-1)
        delta = dt @ p['dt_proj.weight'].t()
        y = ops.selective_scan(
            x_f, delta, A, B, C, p['D'], z, p['dt_proj.bias'], delta_softplus=True
        )
    else:
        own = '_b' if case.startswith('v2') else ''
        x_b = conv('_b', reverse=True) if own else x_f
        dbl_b = x_b @ p[f'x_proj{own}.weight'].t() if own else dbl_f
        y = ops.bidirectional(
            *(x_f, x_b, dbl_f, dbl_b),
            *(p['dt_proj.weight'], p[f'dt_proj{own}.weight']),
            *(p['dt_proj.bias'], p[f'dt_proj{own}.bias']),
            *(A, -torch.exp(p['A_b_log']), p['D'], p[f'D{own}'], z),
            scale=0.5 if case == 'v2_div' else 1.0,
        )
    out = F.linear(y, p['out_proj.weight'])
    grads = torch.autograd.grad(out, (h, *p.values()), data['w'])
    return out, dict(zip(('x', *p), grads))


@implementations
@MIXERS
def test_mixer(ops: Ops, case: str, golden: Golden) -> None:
    data = golden('mixer')
    out, grads = mixer(ops, case, data)
    torch.testing.assert_close(out, data[f'{case}.out'], rtol=0.0, atol=1e-10)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, data[f'{case}.grad.{name}'], rtol=1e-9, atol=1e-10)


@MIXERS
def test_native_mixer(case: str, golden: Golden, each_kernels: Iterator[Any]) -> None:
    data = golden('mixer')
    single = {name: tensor.float() for name, tensor in data.items()}
    for kernels in each_kernels:
        own = {name: tensor.clone() for name, tensor in kernels.place(single).items()}
        out, grads = mixer(Ops(kernels.backend), case, own)
        assert_near(out, data[f'{case}.out'])
        assert_grads_near(grads, data, f'{case}.grad.')
