"""The CUDA convolutions, emulated on the CPU: values, gradients, views, the order of threads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import mmvim_ops

Tools = tuple[Any, Any]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize('dtype', DTYPES, ids=['float', 'bfloat16', 'half'])
# Beside the runs of 8 tokens and the blocks of 32.
LENGTHS = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 67, 128, 197]
# Channels of a block: 64 in pairs, else 32.
CHANNELS = [1, 5, 33, 70, 128]


@pytest.fixture
def tools(value_and_grads: Any, assert_close: Any, emulated: Any) -> Tools:
    return value_and_grads, assert_close


def inputs(
    B: int, L: int, E: int, dtype: torch.dtype, bias: bool = True, W: int = 4
) -> dict[str, Tensor]:
    """Inputs of both directions by name, in the order of the signature."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    values = {'x': randn(B, L, E).to(dtype)}
    for direction in 'fb':
        values[f'w_{direction}'] = randn(E, W) * W**-0.5
        if bias:
            values[f'b_{direction}'] = randn(E)
    return values


def both(
    x: Tensor,
    w_f: Tensor,
    w_b: Tensor,
    b_f: Tensor | None = None,
    b_b: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """In one tensor, so that the gradients of the results are views."""
    return torch.cat(mmvim_ops.bi_conv1d_silu(x, w_f, b_f, w_b, b_b, **options), dim=2)


def causal(x: Tensor, w_f: Tensor, b_f: Tensor | None = None, **options: Any) -> Tensor:
    out: Tensor = mmvim_ops.conv1d_silu(x, w_f, b_f, **options)
    return out


def anti_causal(x: Tensor, w_b: Tensor, b_b: Tensor | None = None, **options: Any) -> Tensor:
    out: Tensor = mmvim_ops.conv1d_silu(x, w_b, b_b, reverse=True, **options)
    return out


# The functions, and what they take besides x.
CASES: list[tuple[Callable[..., Tensor], str]] = [(both, 'fb'), (causal, 'f'), (anti_causal, 'b')]


def of(directions: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those that directions take."""
    return {name: each for name, each in tensors.items() if name == 'x' or name[-1] in directions}


def compare(
    function: Callable[..., Tensor], tensors: dict[str, Tensor], tools: Tools, where: object
) -> None:
    """Values and all gradients, against those of float64."""
    value_and_grads, assert_close = tools
    exact = {name: tensor.double() for name, tensor in tensors.items()}
    expected = value_and_grads(partial(function, backend='reference'), exact)
    actual = value_and_grads(partial(function, backend='cpu'), tensors)
    assert actual['out'].dtype == tensors['x'].dtype
    for name, tensor in tensors.items():
        assert actual[f'grad of {name}'].dtype == tensor.dtype
    assert_close(actual, expected, channels=tensors['x'].shape[2], where=where)


@dtypes
@pytest.mark.parametrize('L', LENGTHS)
def test_values_and_gradients(dtype: torch.dtype, L: int, tools: Tools) -> None:
    for number, E in enumerate(CHANNELS):
        B, bias = [1, 3][number % 2], number % 3 > 0
        for function, directions in CASES:
            tensors = of(directions, inputs(B, L, E, dtype, bias))
            compare(function, tensors, tools, (function.__name__, B, L, E, bias))


@pytest.mark.parametrize('W', [1, 2, 3, 7])
def test_other_widths_run_in_pure_torch(W: int, tools: Tools, emulated: Any) -> None:
    """Whoever asks for the kernels gets their numbers, and who calls an operator a sentence."""
    for function, directions in CASES:
        tensors = of(directions, inputs(2, 9, 5, torch.bfloat16, W=W))
        compare(function, tensors, tools, (function.__name__, W))
    family, x, w = emulated.backend.family, torch.zeros(2, 9, 5), torch.zeros(5, W)
    message = f"convolutions of width 4, got {W}; use backend='chunked'"
    with pytest.raises(RuntimeError, match=message):
        family.conv1d_silu(x, w, None, False)
    with pytest.raises(RuntimeError, match=message):
        family.bi_conv1d_silu_backward(x, x, x, torch.zeros(5, 4), None, w, None, [True] * 5)


@pytest.mark.parametrize(('B', 'L'), [(530, 130), (530, 40), (300, 300), (140, 129), (1, 4097)])
def test_long_runs(B: int, L: int, tools: Tools) -> None:
    """Many blocks leave a thread of the backward pass more tokens: 128, 64, 32 or 16."""
    for E in (1, 2):
        compare(both, inputs(B, L, E, torch.float32), tools, (B, L, E))


@dtypes
def test_views(dtype: torch.dtype, tools: Tools) -> None:
    """Part of a wider tensor at any offset; every other token; channels that are not adjacent."""

    def cut(
        x: Tensor, offset: int, width: int, function: Callable[..., Tensor], **others: Any
    ) -> Tensor:
        return function(x[:, ::2, offset : offset + width], **others)

    def turned(x: Tensor, **others: Any) -> Tensor:
        return both(x.transpose(1, 2), **others).transpose(1, 2)

    for offset, width, wide in product((0, 1, 2, 3, 4), (5, 6, 40), (80, 81)):
        tensors = inputs(2, 71, width, dtype)
        tensors['x'] = inputs(2, 71, wide, dtype)['x']
        for function, directions in CASES:
            options: dict[str, Any] = dict(offset=offset, width=width, function=function)
            some = of(directions, tensors)
            compare(partial(cut, **options), some, tools, (offset, width, wide))
    tensors = inputs(2, 35, 6, dtype)
    tensors['x'] = tensors['x'].transpose(1, 2).contiguous()
    compare(turned, tensors, tools, 'turned')


def test_only_what_is_needed(emulated: Any) -> None:
    """Every subset of the gradients has the numbers that all of them have."""
    tensors = inputs(2, 37, 6, torch.float32)
    family = emulated.backend.family
    x, w_f, w_b, b_f, b_b = (tensors[name] for name in ('x', 'w_f', 'w_b', 'b_f', 'b_b'))
    grads = [torch.randn(2, 37, 6, generator=torch.Generator().manual_seed(i)) for i in (1, 2)]

    def check(run: Callable[[list[bool]], tuple[Tensor, ...]], count: int) -> None:
        everything = run([True] * count)
        for needs in product([False, True], repeat=count):
            for got, all_of_it, need in zip(run(list(needs)), everything, needs):
                assert torch.equal(got, all_of_it) if need else got.numel() == 0, needs

    backward = family.bi_conv1d_silu_backward
    check(lambda needs: backward(*grads, x, w_f, b_f, w_b, b_b, needs), 5)
    backward_of_one = family.conv1d_silu_backward
    for reverse in (False, True):
        check(partial(backward_of_one, grads[0], x, w_f, b_f, reverse), 3)


@dtypes
def test_parameters_in_other_dtypes(dtype: torch.dtype, tools: Tools) -> None:
    for other in DTYPES:
        tensors = {
            name: tensor.to(dtype if name == 'x' else other)
            for name, tensor in inputs(2, 33, 6, dtype).items()
        }
        value_and_grads, assert_close = tools
        exact = {name: tensor.double() for name, tensor in tensors.items()}
        expected = value_and_grads(partial(both, backend='reference'), exact)
        actual = value_and_grads(partial(both, backend='cpu'), tensors)
        assert_close(actual, expected, where=other)


def test_empty_batch(tools: Tools) -> None:
    for function, directions in CASES:
        tensors = of(directions, inputs(0, 5, 6, torch.float32))
        compare(function, tensors, tools, function.__name__)


def test_the_same_bits_in_every_order_of_threads(
    value_and_grads: Callable[..., dict[str, Tensor]], emulated: Any
) -> None:
    for E, L in product((5, 70), (31, 150)):
        for function, directions in CASES:
            tensors = of(directions, inputs(2, L, E, torch.bfloat16))
            found = []
            for order in range(3):
                emulated.use_order(order)
                found.append(value_and_grads(partial(function, backend='cpu'), tensors))
            for other in found[1:]:
                for name in other:
                    assert torch.equal(other[name], found[0][name]), (E, L, name)
