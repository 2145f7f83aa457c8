"""The CUDA normalisation, emulated on the CPU: values, gradients, dtypes, views, thread orders."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import mmvim_ops
from mmvim_ops import reference

Run = Callable[..., dict[str, Tensor]]
Tools = tuple[Any, Any]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Beside the 16 tokens a block takes at once; whole and broken fours of channels; more channels than
# the usual kernel takes; more tokens than one round of a backward block.
SHAPES = [
    *[(1, 1, 1), (3, 5, 5), (1, 15, 192), (2, 16, 64), (1, 17, 33), (3, 33, 70), (2, 1, 1024)],
    *[(1, 2, 1025), (2, 18, 1028), (70, 130, 5), (5, 4097, 4)],
]
ours: Callable[..., tuple[Tensor, Tensor]] = partial(mmvim_ops.add_rms_norm, backend='cpu')


@pytest.fixture
def tools(value_and_grads: Any, assert_close: Any, emulated: Any) -> Tools:
    return value_and_grads, assert_close


def inputs(B: int, L: int, C: int, *dtypes: torch.dtype) -> dict[str, Tensor]:
    """x, added and weight, each in a dtype of its own or float32."""
    generator = torch.Generator().manual_seed(B + L + C)
    shapes = {'x': (B, L, C), 'added': (B, L, C), 'weight': (C,)}
    values = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    return {name: values[name].to(dtype) for name, dtype in zip(values, dtypes or DTYPES[:1] * 3)}


def exact(
    x: Tensor, added: Tensor, weight: Tensor, rounded: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """What is normalised is the sum as it is kept, rounded; its gradient knows of no rounding."""
    total = x + added
    total = total + (rounded.double() - total).detach()
    return reference.add_rms_norm(total, torch.zeros_like(total), weight, eps)


def compare(
    tensors: dict[str, Tensor],
    tools: Tools,
    cut: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    outs: slice = slice(None),
    **options: float,
) -> None:
    """Values and all gradients of some outputs, from parts of the inputs."""
    value_and_grads, assert_close = tools
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    x, added = cut(tensors['x']), cut(tensors['added'])
    rounded = (x.float() + added.float()).to(dtypes['x'])

    def run(function: Any, x: Tensor, added: Tensor, weight: Tensor) -> Any:
        return function(cut(x), cut(added), weight, **options)[outs]

    wide = {name: tensor.double() for name, tensor in tensors.items()}
    expected = value_and_grads(partial(run, partial(exact, rounded=rounded)), wide)
    actual = value_and_grads(partial(run, ours), tensors)
    results = [dtypes['weight'], dtypes['x']][outs]
    for name, dtype in zip(('out', 'out 1'), results):
        assert actual[name].dtype == dtype
    # The gradient of what is added is that of x.
    del expected['grad of added']
    grad = actual.pop('grad of added')
    assert grad.dtype == dtypes['added']
    assert torch.equal(grad, actual['grad of x'].to(dtypes['added']))
    assert_close(actual, expected, where=(tuple(tensors['x'].shape), dtypes))


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_values_and_gradients(shape: tuple[int, int, int], tools: Tools) -> None:
    """In all combinations of dtypes, or in those of a training run where the tensors are large."""
    few = [(torch.float32,) * 3, (torch.float32, torch.bfloat16, torch.float32)]
    for dtypes in product(DTYPES, repeat=3) if shape[0] * shape[1] < 1000 else few:
        compare(inputs(*shape, *dtypes), tools)


@pytest.mark.parametrize('dtype', DTYPES, ids=['float', 'bfloat16', 'half'])
def test_only_the_normalised_is_used(dtype: torch.dtype, tools: Tools) -> None:
    compare(inputs(2, 19, 12, dtype, dtype, torch.float32), tools, outs=slice(0, 1))


def test_only_the_total_is_used(emulated: Any) -> None:
    tensors = inputs(2, 19, 12)
    for tensor in tensors.values():
        tensor.requires_grad_()
    _, total = ours(**tensors)
    given = torch.randn(total.shape, generator=torch.Generator().manual_seed(1))
    x, added, weight = torch.autograd.grad(total, list(tensors.values()), given)
    assert torch.equal(x, given)
    assert torch.equal(added, given)
    assert torch.equal(weight, torch.zeros(12))


@pytest.mark.parametrize('eps', [0.0, 0.5])
def test_eps(eps: float, tools: Tools) -> None:
    compare(inputs(2, 19, 12), tools, eps=eps)


def test_views(tools: Tools) -> None:
    """Part of a wider tensor at any offset; every other token; channels that are not adjacent."""
    for dtypes in [(torch.float32, torch.bfloat16, torch.float32), (torch.float16,) * 3]:
        for offset, C, wide in product((0, 1, 2, 4, 8), (7, 8), (16, 20, 21)):
            tensors = inputs(2, 37, wide, *dtypes)
            tensors['weight'] = tensors['weight'][:C].clone()
            compare(tensors, tools, lambda x: x[:, ::2, offset : offset + C])  # noqa: B023
        tensors = inputs(2, 12, 37, *dtypes)
        tensors['weight'] = tensors['weight'][:12].clone()
        compare(tensors, tools, lambda x: x.transpose(1, 2))


def test_empty_batch(tools: Tools) -> None:
    compare(inputs(0, 5, 6), tools)


def test_scales(emulated: Any) -> None:
    tensors = inputs(2, 21, 12, torch.float16, torch.float32, torch.bfloat16)
    _, total, scales = emulated.backend.family.add_rms_norm(*tensors.values(), 1e-5)
    assert scales.dtype == torch.float32
    torch.testing.assert_close(scales, (total.float().square().mean(-1) + 1e-5).rsqrt())


@pytest.mark.parametrize('C', [5, 70, 192, 1100])
def test_the_same_bits_in_every_order_of_threads(
    C: int, value_and_grads: Run, emulated: Any
) -> None:
    tensors = inputs(3, 33, C, torch.float32, torch.bfloat16, torch.float32)
    found = []
    for order in range(3):
        emulated.use_order(order)
        found.append(value_and_grads(ours, tensors))
    for other in found[1:]:
        for name in other:
            assert torch.equal(other[name], found[0][name]), name


def test_too_many_channels(emulated: Any) -> None:
    ours(**inputs(1, 1, 24576))
    with pytest.raises(RuntimeError, match=r"up to 24576 channels, got 24577; .*'chunked'"):
        ours(**inputs(1, 1, 24577))
