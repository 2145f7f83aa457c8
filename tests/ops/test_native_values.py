"""Values and gradients of the compiled kernels against the float64 reference on equal inputs."""

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
from mmvim_ops import reference

Inputs = Callable[..., dict[str, Tensor]]

# L, E, N, B, R and groups: lengths beside tiles and chunks, channels beside vectors and blocks,
# states beside the groups that are held in registers.
SIZES = [
    (1, 5, 4, 3, 1, 1),
    (2, 33, 16, 1, 3, 3),
    (31, 40, 1, 1, 4, 2),
    (32, 16, 32, 3, 12, 1),
    (33, 7, 17, 1, 48, 1),
    (63, 100, 3, 1, 12, 4),
    (64, 48, 4, 3, 3, 2),
    (65, 97, 16, 1, 12, 1),
    (127, 20, 5, 1, 1, 5),
    (128, 3, 32, 1, 4, 1),
    (129, 200, 8, 3, 12, 2),
    (197, 1, 16, 3, 12, 1),
    (1025, 35, 8, 1, 3, 1),
    (4097, 20, 4, 1, 3, 1),
]
DTYPES = [torch.float32, torch.bfloat16]
CASES = [
    pytest.param(
        dtype,
        *size,
        id='-'.join(map(str, (str(dtype).removeprefix('torch.'), *size))),
        marks=pytest.mark.slow if dtype == torch.bfloat16 and size[0] > 1000 else (),
    )
    for dtype, size in product(DTYPES, SIZES)
]
sizes = pytest.mark.parametrize(('dtype', 'L', 'E', 'N', 'B', 'R', 'groups'), CASES)


def double(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in tensors.items()}


@sizes
def test_bidirectional(
    dtype: torch.dtype,
    L: int,
    E: int,
    N: int,
    B: int,
    R: int,
    groups: int,
    bidirectional_inputs: Inputs,
    value_and_grads: Inputs,
    assert_close: Any,
    each_kernels: Iterator[Any],
) -> None:
    inputs = bidirectional_inputs(B=B, L=L, E=E, N=N, R=R, dtype=dtype)
    scan = partial(bidirectional, scale=0.7)
    expected = value_and_grads(scan, double(inputs), backend='reference')
    for kernels in each_kernels:
        actual = value_and_grads(scan, kernels.place(inputs), backend=kernels.backend)
        assert actual['out'].dtype == dtype
        assert_close(actual, expected, channels=E, where=kernels.name)


@sizes
def test_selective_scan(
    dtype: torch.dtype,
    L: int,
    E: int,
    N: int,
    B: int,
    R: int,
    groups: int,
    scan_inputs: Inputs,
    value_and_grads: Inputs,
    assert_close: Any,
    each_kernels: Iterator[Any],
) -> None:
    """The last state and its gradient too; a direction for each length."""
    inputs = scan_inputs(B=B, L=L, E=E, N=N, groups=groups, dtype=dtype)
    options = dict(delta_softplus=True, groups=groups, reverse=L % 2 > 0, return_last_state=True)
    expected = value_and_grads(reference.selective_scan, double(inputs), **options)
    for kernels in each_kernels:
        given = kernels.place(inputs)
        actual = value_and_grads(
            mmvim_ops.selective_scan, given, backend=kernels.backend, **options
        )
        assert actual['out'].dtype == dtype
        assert_close(actual, expected, channels=E, where=kernels.name)


@pytest.mark.parametrize('reverse', [False, True])
@pytest.mark.parametrize('softplus', [False, True])
@pytest.mark.parametrize('last_state', [False, True])
def test_options(
    reverse: bool,
    softplus: bool,
    last_state: bool,
    scan_inputs: Inputs,
    value_and_grads: Inputs,
    assert_close: Any,
    each_kernels: Iterator[Any],
) -> None:
    """Every combination of the inputs that may be left out."""
    inputs = scan_inputs(B=2, L=35, E=19, N=5, dtype=torch.float32)
    if not softplus:
        inputs['delta'], inputs['delta_bias'] = inputs['delta'].abs(), inputs['delta_bias'].abs()
    options = dict(delta_softplus=softplus, reverse=reverse, return_last_state=last_state)
    cases = []
    for given in product([True, False], repeat=3):
        without = [name for name, is_given in zip(('D', 'z', 'delta_bias'), given) if not is_given]
        some = {name: tensor for name, tensor in inputs.items() if name not in without}
        expected = value_and_grads(reference.selective_scan, double(some), **options)
        cases.append((some, expected, without))
    for kernels in each_kernels:
        for some, expected, without in cases:
            actual = value_and_grads(
                mmvim_ops.selective_scan,
                kernels.place(some),
                backend=kernels.backend,
                **options,
            )
            assert_close(actual, expected, where=f'{kernels.name} without {without}')


@pytest.mark.parametrize('parameters', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('activations', [torch.float32, torch.bfloat16, torch.float16])
def test_mixed_dtypes(
    activations: torch.dtype,
    parameters: torch.dtype,
    bidirectional_inputs: Inputs,
    scan_inputs: Inputs,
    value_and_grads: Inputs,
    assert_close: Any,
    each_kernels: Iterator[Any],
) -> None:
    """Any dtype may meet any other; a gradient has the dtype of its input."""

    def mixed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        for name, tensor in tensors.items():
            tensors[name] = tensor.to(activations if tensor.dim() > 2 else parameters)
        tensors[next(reversed(tensors))] = tensor.float()
        return tensors

    generic = partial(mmvim_ops.selective_scan, delta_softplus=True)
    cases = []
    for function, inputs in (
        (generic, mixed(scan_inputs(B=1, L=70, E=24, N=8, dtype=torch.float32))),
        (
            bidirectional,
            mixed(bidirectional_inputs(B=1, L=70, E=24, N=8, dtype=torch.float32)),
        ),
    ):
        expected = value_and_grads(function, double(inputs), backend='reference')
        cases.append((function, inputs, expected))
    for kernels in each_kernels:
        for function, inputs, expected in cases:
            actual = value_and_grads(function, kernels.place(inputs), backend=kernels.backend)
            assert actual['out'].dtype == activations
            for name, tensor in inputs.items():
                assert actual[f'grad of {name}'].dtype == tensor.dtype
            assert_close(actual, expected, where=kernels.name)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize(
    ('L', 'E', 'width', 'B'),
    [(1, 5, 4, 3), (2, 35, 3, 1), (3, 16, 7, 2), (64, 100, 4, 1), (65, 33, 1, 3), (197, 40, 4, 2)],
)
def test_convolutions(
    dtype: torch.dtype,
    bias: bool,
    L: int,
    E: int,
    width: int,
    B: int,
    value_and_grads: Inputs,
    assert_close: Any,
    each_kernels: Iterator[Any],
) -> None:
    generator = torch.Generator().manual_seed(L)
    x = torch.randn(B, L, E, generator=generator).to(dtype)
    w_f, w_b = torch.randn(2, E, width, generator=generator)
    b_f, b_b = torch.randn(2, E, generator=generator)
    both = dict(x=x, w_f=w_f, w_b=w_b) | (dict(b_f=b_f, b_b=b_b) if bias else {})
    one = dict(x=x, weight=w_f) | (dict(bias=b_f) if bias else {})

    def two(ops: Any, **tensors: Any) -> Any:
        return ops(**({'b_f': None, 'b_b': None} | tensors))

    cases = []
    for function, inputs in (
        (partial(two, mmvim_ops.bi_conv1d_silu), both),
        (partial(mmvim_ops.conv1d_silu, reverse=False), one),
        (partial(mmvim_ops.conv1d_silu, reverse=True), one),
    ):
        expected = value_and_grads(function, double(inputs), backend='reference')
        cases.append((function, inputs, expected))
    for kernels in each_kernels:
        for function, inputs, expected in cases:
            actual = value_and_grads(function, kernels.place(inputs), backend=kernels.backend)
            assert_close(actual, expected, where=kernels.name)


@pytest.mark.usefixtures('deterministic')
def test_any_subset_of_gradients(
    scan_inputs: Inputs, bidirectional_inputs: Inputs, each_kernels: Iterator[Any]
) -> None:
    """An input gets the same bits alone as among all."""
    generic = partial(mmvim_ops.selective_scan, delta_softplus=True)
    both = bidirectional
    for kernels in each_kernels:
        for op, made in (
            (generic, scan_inputs(L=70, dtype=torch.float32)),
            (both, bidirectional_inputs(L=70, dtype=torch.float32)),
        ):
            function, inputs = partial(op, backend=kernels.backend), kernels.place(made)
            everything = {n: t.clone().requires_grad_() for n, t in inputs.items()}
            wanted = torch.autograd.grad(function(**everything).sum(), tuple(everything.values()))
            for name, expected in zip(everything, wanted):
                leaf = inputs[name].clone().requires_grad_()
                (grad,) = torch.autograd.grad(function(**(inputs | {name: leaf})).sum(), leaf)
                assert torch.equal(grad, expected), (kernels.name, name)


def test_empty_batch(
    scan_inputs: Inputs,
    bidirectional_inputs: Inputs,
    value_and_grads: Inputs,
    each_kernels: Iterator[Any],
) -> None:
    x, weight, bias = torch.zeros(0, 5, 6), torch.ones(6, 4), torch.ones(6)
    cases: list[tuple[Any, dict[str, Tensor]]] = [
        (mmvim_ops.conv1d_silu, dict(x=x, weight=weight)),
        (mmvim_ops.bi_conv1d_silu, dict(x=x, w_f=weight, b_f=bias, w_b=weight, b_b=bias)),
    ]
    for dtype in DTYPES:
        cases.append((mmvim_ops.selective_scan, scan_inputs(B=0, dtype=dtype)))
        cases.append((bidirectional, bidirectional_inputs(B=0, dtype=dtype)))
    for kernels in each_kernels:
        for function, inputs in cases:
            result = value_and_grads(function, kernels.place(inputs), backend=kernels.backend)
            assert result['out'].shape[0] == 0, kernels.name
            for name, tensor in inputs.items():
                grad = result[f'grad of {name}']
                assert grad.shape == tensor.shape and grad.dtype == tensor.dtype
                assert not grad.any(), (kernels.name, name)
