"""The compiled kernels on decays and steps at the ends of their ranges, and on NaN and infinity."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from mmvim_ops_by_name import bidirectional
from torch import Tensor

import mmvim_ops
from mmvim_ops import reference

Inputs = Callable[..., dict[str, Tensor]]
scan = mmvim_ops.selective_scan


def double(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in tensors.items()}


def before_softplus(step: Tensor) -> Tensor:
    """What softplus makes these steps of, in float32."""
    step = step.double()
    return torch.where(step > 20, step, torch.log(torch.expm1(step))).float()


def around(size: float, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (0.5 + torch.rand(*shape, generator=generator)) * size


def with_decays(inputs: dict[str, Tensor], rate: float, step: float) -> dict[str, Tensor]:
    """Inputs of the generic scan, its step by softplus."""
    L, E = inputs['u'].shape[1:]
    inputs['A'] = -inputs['A'].abs().clamp(0.5, 2.0) * rate
    inputs['delta'] = before_softplus(around(step, 1, L, E))
    inputs['delta_bias'] = torch.zeros(E)
    return inputs


def with_decays_both(inputs: dict[str, Tensor], rate: float, step: float) -> dict[str, Tensor]:
    """Inputs of the bidirectional scan; its bias alone sets the size of the step."""
    for d in 'fb':
        inputs[f'A_{d}'] = -inputs[f'A_{d}'].abs().clamp(0.5, 2.0) * rate
        inputs[f'dt_b_{d}'] = before_softplus(around(step, len(inputs[f'dt_b_{d}'])))
        inputs[f'dt_w_{d}'] = inputs[f'dt_w_{d}'] * 0.3
    return inputs


def check(
    L: int,
    rate: float,
    step: float,
    names: tuple[str, ...] | None,
    tools: tuple[Any, ...],
    unfused: bool = False,
) -> None:
    """Both scans; what the token loop in float32 attains is enough for ``names``, None for all.

    With ``unfused`` it is enough for everything where a multiply-add is rounded twice.
    """
    scan_inputs, bidirectional_inputs, value_and_grads, assert_close, each_kernels = tools
    shape = dict(B=1, L=L, E=20, N=4, dtype=torch.float32)
    options = dict(delta_softplus=True, return_last_state=True)
    one = with_decays(scan_inputs(**shape), rate, step)
    both = with_decays_both(bidirectional_inputs(**shape), rate, step)
    cases = []
    for function, spec, inputs, rest in (
        (scan, reference.selective_scan, one, options),
        (bidirectional, partial(bidirectional, backend='reference'), both, {}),
    ):
        expected = value_and_grads(spec, double(inputs), **rest)
        loop = value_and_grads(spec, inputs, **rest)
        cases.append((function, inputs, rest, expected, loop))
    for kernels in each_kernels:
        every = names is None or (unfused and kernels.name == 'plain')
        for function, inputs, rest, expected, loop in cases:
            floor = {name: loop[name] for name in loop if every or name in (names or ())}
            given = kernels.place(inputs)
            actual = value_and_grads(function, given, backend=kernels.backend, **rest)
            if rate * step > 100:
                # The slowest decay makes nearly all of the gradient of A: its rms error is the
                # largest error.
                rates = [name for name in actual if name.startswith('grad of A')]
                few = [{name: r.pop(name) for name in rates} for r in (actual, dict(expected))]
                assert_close(*few, out=(2e-5, 2e-5), where=kernels.name)
                expected = {name: expected[name] for name in actual}
            assert_close(actual, expected, where=kernels.name, floor=floor)


@pytest.mark.parametrize(
    ('rate', 'step'),
    [
        *[(1e-5, 1e-6), (1.0, 1e-6), (1e-3, 1e-2), (1.0, 1e-3)],
        *[(0.1, 100.0), (16.0, 6.0), (50.0, 3.0), (3e4, 10.0)],
    ],
)
def test_decays(
    rate: float,
    step: float,
    scan_inputs: Inputs,
    bidirectional_inputs: Inputs,
    value_and_grads: Inputs,
    assert_close: Any,
    each_kernels: Iterator[Any],
) -> None:
    """A last state that forgets nothing takes in the rounding of every addition to it."""
    tools = (scan_inputs, bidirectional_inputs, value_and_grads, assert_close, each_kernels)
    check(1025, rate, step, ('out 1',), tools)


def test_decays_within_1e_7_of_one(
    scan_inputs: Inputs,
    bidirectional_inputs: Inputs,
    value_and_grads: Inputs,
    assert_close: Any,
    each_kernels: Iterator[Any],
) -> None:
    """They are no float32 numbers; a multiply-add in one rounding makes the best of them."""
    tools = (scan_inputs, bidirectional_inputs, value_and_grads, assert_close, each_kernels)
    check(1025, 1e-4, 1e-3, ('out 1',), tools, unfused=True)


@pytest.mark.slow
@pytest.mark.parametrize(('rate', 'step'), [(1e-4, 1e-3), (1e-2, 1e-2), (1.0, 1e-3), (50.0, 3.0)])
def test_decays_over_thousands_of_tokens(
    rate: float,
    step: float,
    scan_inputs: Inputs,
    bidirectional_inputs: Inputs,
    value_and_grads: Inputs,
    assert_close: Any,
    each_kernels: Iterator[Any],
) -> None:
    """The roundings of 4097 additions to a state add up, in the token loop as here."""
    tools = (scan_inputs, bidirectional_inputs, value_and_grads, assert_close, each_kernels)
    check(4097, rate, step, None, tools)


@pytest.mark.parametrize('raw', [-80.0, -30.0, -14.0, -7.0, 0.0, 19.9, 1000.0, 1e30])
def test_softplus(
    raw: float,
    scan_inputs: Inputs,
    value_and_grads: Inputs,
    assert_close: Any,
    each_kernels: Iterator[Any],
) -> None:
    """Relative accuracy where the step is tiny, and both sides of 20, the identity's threshold.

    Without D, the output is nothing but what came through the step; without a bias, nothing has to
    be added before softplus.
    """
    inputs = scan_inputs(B=1, L=65, E=20, dtype=torch.float32)
    inputs['delta'] = raw + 0.2 * (inputs['delta'] + 2)
    del inputs['D'], inputs['delta_bias']
    expected = value_and_grads(reference.selective_scan, double(inputs), delta_softplus=True)
    below = ['grad of A'] if raw == -80 else []  # no more than 1e-70
    if raw > 100:  # decays of 1e-400 and less
        below = [name for name in expected if name in ('grad of A', 'grad of delta')]
    # A float32 exponent of -30 has an error of 1e-6 before the exponential is taken.
    tolerances = ((3e-6, 2e-6), (2e-5, 5e-6)) if raw < -20 else ()
    for kernels in each_kernels:
        given = kernels.place(inputs)
        actual = value_and_grads(scan, given, delta_softplus=True, backend=kernels.backend)
        found, wanted = ({n: r[n] for n in r if n not in below} for r in (actual, expected))
        assert_close(found, wanted, *tolerances, where=kernels.name)


@pytest.mark.parametrize('size', [1e-30, 1e-6, 1e4, 1e20])
def test_scale_of_inputs(
    size: float,
    scan_inputs: Inputs,
    value_and_grads: Inputs,
    assert_close: Any,
    each_kernels: Iterator[Any],
) -> None:
    """The op is linear in u: any size of it keeps the relative error."""
    inputs = scan_inputs(B=1, L=65, E=20, dtype=torch.float32)
    inputs['u'] = inputs['u'] * size
    expected = value_and_grads(reference.selective_scan, double(inputs), delta_softplus=True)
    for kernels in each_kernels:
        given = kernels.place(inputs)
        actual = value_and_grads(scan, given, delta_softplus=True, backend=kernels.backend)
        assert_close(actual, expected, where=kernels.name)


@pytest.mark.parametrize('gate', [-1e4, -100.0, -20.0, 20.0, 1e4])
def test_gate(
    gate: float,
    scan_inputs: Inputs,
    value_and_grads: Inputs,
    assert_close: Any,
    each_kernels: Iterator[Any],
) -> None:
    """silu and its slope far from zero, beside gates that are open."""
    inputs = scan_inputs(B=1, L=65, E=20, dtype=torch.float32)
    inputs['z'][:, ::2] = gate
    expected = value_and_grads(reference.selective_scan, double(inputs), delta_softplus=True)
    for kernels in each_kernels:
        given = kernels.place(inputs)
        actual = value_and_grads(scan, given, delta_softplus=True, backend=kernels.backend)
        assert_close(actual, expected, where=kernels.name)


def test_infinite_rates_forget(
    scan_inputs: Inputs, assert_close: Any, each_kernels: Iterator[Any]
) -> None:
    """A product of step and A beyond float32, and A = -inf: what an overflowing A_log makes."""
    inputs = scan_inputs(B=1, L=70, E=20, dtype=torch.float32)
    inputs['delta'] = inputs['delta'] + 100
    A = inputs.pop('A')
    for kernels in each_kernels:
        for rate in (1e37, 1e38, float('inf')):
            some = inputs | {'A': A * rate}
            expected = {'out': reference.selective_scan(**double(some), delta_softplus=True)}
            given = kernels.place(some)
            out = scan(**given, delta_softplus=True, backend=kernels.backend)
            assert_close({'out': out}, expected, where=kernels.name)


@pytest.mark.parametrize('name', ['u', 'delta', 'B', 'C', 'z', 'A', 'D', 'delta_bias'])
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_what_is_no_number_stays_visible(
    name: str, value: float, scan_inputs: Inputs, each_kernels: Iterator[Any]
) -> None:
    """It reaches the outputs that it reaches in the reference, and no other."""
    inputs = scan_inputs(B=2, L=70, E=20, dtype=torch.float32)
    inputs[name] = inputs[name].clone()
    inputs[name].view(-1)[7 if inputs[name].dim() < 3 else -150] = value
    expected = reference.selective_scan(**inputs, delta_softplus=True)
    assert not expected.isfinite().all()
    for kernels in each_kernels:
        for forced in (torch.float32, torch.bfloat16):
            some = {n: t.to(forced) if t.dim() > 2 else t for n, t in inputs.items()}
            given = kernels.place(some)
            out = scan(**given, delta_softplus=True, backend=kernels.backend)
            assert torch.equal(out.isfinite().cpu(), expected.isfinite()), (kernels.name, forced)
