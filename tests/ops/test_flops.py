"""The operations that torch's counter counts for our operators."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmvim_ops_by_name import bidirectional
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import mmvim_ops
from mmvim_ops import MixerWeights, library
from mmvim_ops.backends import REFERENCE, select
from mmvim_ops.flops import through_operators

# All different, so that none can stand in for another.
B, L, E, N, R, W = 2, 7, 10, 3, 4, 5


def counted(function: Callable[[], object]) -> int:
    with through_operators(), FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def scan_inputs(device: str = 'cpu', grad: bool = False) -> dict[str, Tensor]:
    def make(*shape: int) -> Tensor:
        return torch.rand(shape, device=device, requires_grad=grad)

    decay = -torch.rand(E, N, device=device)
    inputs = dict(u=make(B, L, E), delta=make(B, L, E), A=decay.requires_grad_(grad))
    return inputs | dict(B=make(B, L, N), C=make(B, L, N), D=make(E), z=make(B, L, E))


def bidirectional_inputs(device: str = 'cpu', grad: bool = False) -> list[Tensor]:
    shapes: list[tuple[int, ...]] = [(B, L, E)] * 2 + [(B, L, R + 2 * N)] * 2
    shapes += [(E, R)] * 2 + [(E,)] * 2 + [(E, N)] * 2 + [(E,)] * 2 + [(B, L, E)]
    return [(-torch.rand(shape, device=device)).requires_grad_(grad) for shape in shapes]


def test_every_operator_has_a_formula() -> None:
    names = [f'{prefix}{name}' for name in library._SCHEMAS for prefix in ('', 'chunked_')]
    assert len(names) == 20
    assert all(getattr(torch.ops.mmvim, name) in flop_registry for name in names)


@pytest.mark.parametrize('device', ['cpu', 'meta'])
@pytest.mark.parametrize('backend', ['auto', 'chunked', 'reference'])
def test_selective_scan(backend: str, device: str) -> None:
    inputs = scan_inputs(device)
    cell = B * L * E

    def count(*left_out: str) -> int:
        given = {name: value for name, value in inputs.items() if name not in left_out}
        return counted(lambda: mmvim_ops.selective_scan(**given, backend=backend))

    assert count('D', 'z') == 9 * cell * N
    assert count('z') == (9 * N + 2) * cell
    assert count('D') == (9 * N + 1) * cell
    assert count() == (9 * N + 3) * cell


@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_bidirectional_scan_costs_two_scans_and_their_projections(device: str) -> None:
    inputs = bidirectional_inputs(device)
    dbl_f, dt_w_f = inputs[2], inputs[4]
    both = counted(lambda: bidirectional(*inputs))
    one = counted(lambda: mmvim_ops.selective_scan(**scan_inputs(device)))
    projection = counted(lambda: F.linear(dbl_f[..., :R], dt_w_f))
    assert both == 2 * (one + projection)
    assert both == 2 * B * L * E * (9 * N + 3 + 2 * R)


def test_operators_in_pure_torch_are_counted_without_the_context_too() -> None:
    with FlopCounterMode(display=False) as counter:
        mmvim_ops.selective_scan(**scan_inputs(), backend='chunked')
        bidirectional(*bidirectional_inputs(), backend='chunked')
    cell = B * L * E
    assert counter.get_total_flops() == cell * (9 * N + 3) + 2 * cell * (9 * N + 3 + 2 * R)


def test_convolutions_cost_what_torch_says_of_its_own() -> None:
    x, weight, bias = torch.rand(B, L, E), torch.rand(E, W), torch.rand(E)
    padded = F.pad(x.transpose(1, 2), (W - 1, 0))
    theirs = counted(lambda: F.conv1d(padded, weight[:, None], bias, groups=E))
    assert theirs == 2 * B * L * E * W
    assert counted(lambda: mmvim_ops.conv1d_silu(x, weight, bias)) == theirs
    assert counted(lambda: mmvim_ops.bi_conv1d_silu(x, weight, bias, weight, None)) == 2 * theirs


@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_an_inner_block_costs_what_its_ops_do(device: str) -> None:
    """And backwards, where it computes the convolutions once more, as much more."""

    def make(*shape: int) -> Tensor:
        return (-torch.rand(shape, device=device)).requires_grad_()

    x_f, _, dbl_f, _, *scan, z = bidirectional_inputs(device, grad=True)
    w, x_w = make(E, W), make(R + 2 * N, E)
    convolutions = counted(lambda: mmvim_ops.bi_conv1d_silu(x_f, w, None, w, None))
    projection = counted(lambda: F.linear(x_f, x_w))
    scans = counted(lambda: bidirectional(x_f, x_f, dbl_f, dbl_f, *scan, z))
    assert projection == 2 * B * L * E * (R + 2 * N)

    def run() -> Tensor:
        weights = MixerWeights(w, None, x_w, *scan[::2]), MixerWeights(w, None, x_w, *scan[1::2])
        return mmvim_ops.vim_inner(x_f, z, *weights)

    results: list[Tensor] = []
    forward = convolutions + 2 * projection + scans
    assert counted(lambda: results.append(run())) == forward
    with torch.no_grad():
        assert counted(run) == forward
    backward = (3 + 1) * convolutions + 2 * (2 * projection) + 3 * scans
    assert counted(lambda: results[0].backward(torch.ones_like(results[0]))) == backward


def test_norm() -> None:
    x, weight = torch.rand(B, L, E), torch.rand(E)
    assert counted(lambda: mmvim_ops.add_rms_norm(x, x, weight)) == 4 * B * L * E


@pytest.mark.parametrize('backend', ['auto', 'chunked'])
def test_backward_passes(backend: str) -> None:
    """Two gradients a product, and the forward pass again where it is recomputed."""
    x = torch.rand(B, L, E, requires_grad=True)
    w = torch.rand(E, W, requires_grad=True)

    def backward(function: Callable[[], Any]) -> tuple[int, int]:
        result: list[Any] = []
        forward = counted(lambda: result.append(function()))
        outs = result[0] if isinstance(result[0], tuple) else (result[0],)
        return forward, counted(lambda: torch.autograd.backward(outs, [o.detach() for o in outs]))

    options = dict(backend=backend)
    for function, factor in (
        (lambda: mmvim_ops.selective_scan(**scan_inputs(grad=True), **options), 3),
        (
            lambda: bidirectional(*bidirectional_inputs(grad=True), **options),
            3,
        ),
        (lambda: mmvim_ops.conv1d_silu(x, w, **options), 3),
        (lambda: mmvim_ops.bi_conv1d_silu(x, w, None, w, None, **options), 3),
        (lambda: mmvim_ops.add_rms_norm(x, x, w[:, 0], **options), 2),
    ):
        forward, behind = backward(function)
        assert forward > 0
        assert behind == factor * forward


def test_the_choice_of_backends_comes_back() -> None:
    """After the context, and in threads that were not asked."""
    chosen = partial(select, 'reference', torch.device('cpu'), torch.float32)
    with pytest.raises(ZeroDivisionError), through_operators(), ThreadPoolExecutor(1) as pool:
        assert chosen() is not REFERENCE
        assert pool.submit(chosen).result() is REFERENCE
        1 / 0  # noqa: B018
    assert chosen() is REFERENCE
