"""The ops under the transforms of ``torch.func``, against plain autograd and loops."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from mmvim_ops_by_name import bidirectional
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap

import mmvim_ops
from mmvim_ops import MixerWeights, loading

Inputs = Callable[..., dict[str, Tensor]]
BACKENDS = [
    'chunked',
    'reference',
    pytest.param(
        'cpu', marks=pytest.mark.skipif(loading.problem() is not None, reason='not built')
    ),
]
SHAPE = dict(B=2, L=9, E=6, N=4, dtype=torch.float32)
backends = pytest.mark.parametrize('backend', BACKENDS)


@pytest.fixture
def calls(scan_inputs: Inputs, bidirectional_inputs: Inputs) -> Callable[..., list[Any]]:
    """Every op that returns tensors of tokens, as one number, with its inputs."""

    def total(function: Callable[..., Any], inputs: dict[str, Tensor]) -> Tensor:
        outs = function(**inputs)
        outs = outs if isinstance(outs, tuple) else (outs,)
        return torch.stack([out.square().sum() for out in outs]).sum()

    def make(backend: str) -> list[Any]:
        one, both = scan_inputs(**SHAPE), bidirectional_inputs(**SHAPE)
        weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
        conv = dict(x=one['u'], weight=weight, bias=one['D'])
        pair = dict(x=one['u'], w_f=weight, b_f=one['D'], w_b=weight + 1, b_b=one['D'])
        norm = dict(x=one['u'], added=one['z'], weight=one['D'])
        scan = partial(mmvim_ops.selective_scan, delta_softplus=True, return_last_state=True)
        cases = (
            (scan, one),
            (bidirectional, both),
            (mmvim_ops.conv1d_silu, conv),
            (mmvim_ops.bi_conv1d_silu, pair),
            (mmvim_ops.add_rms_norm, norm),
        )
        return [(partial(total, partial(op, backend=backend)), given) for op, given in cases]

    return make


def plain_gradients(
    function: Callable[..., Tensor], inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    return dict(zip(leaves, torch.autograd.grad(function(leaves), list(leaves.values()))))


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5, msg=name)


@backends
def test_grad(backend: str, calls: Any) -> None:
    for function, inputs in calls(backend):
        assert_equal(grad(function)(inputs), plain_gradients(function, inputs))


@backends
def test_vmap_over_inputs_and_parameters(backend: str, calls: Any) -> None:
    """Batches of everything, of some inputs, along other axes; forwards and of gradients."""
    for function, inputs in calls(backend):
        batch = {name: torch.stack((t, 0.5 * t, 0.9 * t), dim=-1) for name, t in inputs.items()}
        singles = [{n: t[..., i] for n, t in batch.items()} for i in range(3)]
        found = vmap(function, in_dims=-1)(batch)
        torch.testing.assert_close(found, torch.stack([function(one) for one in singles]))
        grads = vmap(grad(function), in_dims=-1)(batch)
        for index, one in enumerate(singles):
            assert_equal({n: g[index] for n, g in grads.items()}, plain_gradients(function, one))

        lead = next(iter(inputs))
        shared = inputs | {lead: batch[lead]}
        dims = dict.fromkeys(inputs) | {lead: -1}
        expected = [function(inputs | {lead: one[lead]}) for one in singles]
        torch.testing.assert_close(vmap(function, in_dims=(dims,))(shared), torch.stack(expected))


@backends
def test_grad_of_vmap(backend: str, calls: Any) -> None:
    for function, inputs in calls(backend):
        batch = {name: torch.stack((t, 0.5 * t)) for name, t in inputs.items()}
        found = grad(lambda batch: vmap(function)(batch).sum())(batch)  # noqa: B023
        for index in range(2):
            one = {name: t[index] for name, t in batch.items()}
            assert_equal({n: g[index] for n, g in found.items()}, plain_gradients(function, one))


@backends
def test_a_second_derivative(backend: str, calls: Any) -> None:
    """By the reference alone; the others say so."""
    for function, inputs in calls(backend):
        twice = grad(lambda given: grad(function)(given)[next(iter(given))].sum())  # noqa: B023
        if backend == 'reference':
            assert all(g.isfinite().all() for g in twice(inputs).values())
        else:
            sentence = r"differentiated twice, .*scan_backend='reference'"
            with pytest.raises(RuntimeError, match=sentence):
                twice(inputs)


class Block(torch.nn.Module):
    """A mixer between in_proj and out_proj, its parameters as a module has them."""

    def __init__(self, backend: str, E: int = 6, N: int = 4, R: int = 2) -> None:
        super().__init__()
        self.backend = backend
        torch.manual_seed(0)
        shapes = [(E, 4), (E,), (R + 2 * N, E), (E, R), (E,), (E, N), (E,)] * 2
        self.weights = torch.nn.ParameterList(-torch.rand(shape) for shape in shapes)

    def forward(self, xz: Tensor) -> Tensor:
        weights = list(self.weights)
        directions = MixerWeights(*weights[:7]), MixerWeights(*weights[7:])
        return mmvim_ops.vim_inner(*xz.chunk(2, dim=-1), *directions, backend=self.backend)


@backends
def test_a_block(backend: str) -> None:
    """functional_call, and gradients of each sample as many optimisers want them."""
    block = Block(backend)
    samples = torch.randn(3, 1, 9, 12)
    parameters = {name: tensor.detach() for name, tensor in block.named_parameters()}

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(block, parameters, (sample,)).square().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(parameters, samples)
    for index, sample in enumerate(samples):
        expected = torch.autograd.grad(block(sample).square().sum(), list(block.parameters()))
        one = {name: g[index] for name, g in found.items()}
        assert_equal(one, dict(zip(parameters, expected)))


REFUSED = r"cannot be differentiated twice.*backend='reference' \(scan_backend='reference' of a"


@backends
def test_second_derivatives_and_forward_mode(backend: str, calls: Callable[..., list[Any]]) -> None:
    """The specification has both. Others refuse by name, whichever way a user comes by."""
    for function, inputs in [*calls(backend), whole_block(backend)]:
        first = next(iter(inputs))
        rest = {name: tensor for name, tensor in inputs.items() if name != first}
        given = inputs[first].detach()

        def of_one(x: Tensor, rest: Any = rest, first: Any = first, call: Any = function) -> Tensor:
            out: Tensor = call({first: x, **rest})
            return out + x.pow(3).sum()  # reached by another way, nothing may get lost

        def by_autograd(of_one: Any = of_one, given: Any = given) -> None:
            x = given.clone().requires_grad_()
            (slope,) = torch.autograd.grad(of_one(x), x, create_graph=True)
            torch.autograd.grad(slope.square().sum(), x)

        def by_dual_numbers(of_one: Any = of_one, given: Any = given) -> None:
            with forward_ad.dual_level():
                of_one(forward_ad.make_dual(given, torch.ones_like(given)))

        ways: list[Callable[[], object]] = [
            by_autograd,
            by_dual_numbers,
            partial(grad(lambda x, f=of_one: grad(f)(x).square().sum()), given),
            partial(jvp, of_one, (given,), (given,)),
        ]
        for way in ways:
            if backend == 'reference':
                way()
            else:
                with pytest.raises(RuntimeError, match=REFUSED):
                    way()


def whole_block(backend: str) -> tuple[Callable[..., Tensor], dict[str, Tensor]]:
    """As ``calls``."""
    block = Block(backend)
    return lambda inputs: block(inputs['xz']).square().sum(), {'xz': torch.randn(1, 9, 12)}
