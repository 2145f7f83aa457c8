"""Comparison of compiled kernels with pure torch on a GPU, before ``auto`` uses them.

Kernels meet devices, drivers and compilers that nobody tried them on. A few small problems and
their gradients cost some milliseconds, once; wrong numbers would cost a training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from mmvim_ops.backends.backend import Backend
from mmvim_ops.precision import wide_dtype
from mmvim_ops.scan_inputs import ScanInputs, SelectiveInputs

__all__ = ['CASES', 'Case', 'Form', 'difference']


class Case(NamedTuple):
    """Ops that are compared.

    Attributes:
        inputs (Callable[[int], tuple[list[Tensor], list[Tensor]]]): From N to activations and
            parameters, float32 on the CPU, the same every time.
        call (Callable[..., tuple[Tensor, ...]]): From a backend and the inputs to outputs.
    """

    inputs: Callable[[int], tuple[list[Tensor], list[Tensor]]]
    call: Callable[..., tuple[Tensor, ...]]


# Chooses one of several kernels for the same problem, while it lasts.
Form = Callable[[], AbstractContextManager[None]]

# Several tiles and a last one that is not full, channels that do not fill the blocks.
_BATCH, _LENGTH, _CHANNELS, _WIDTH, _GROUPS = 2, 75, 36, 4, 2
# That of Vim and a single one: each has kernels of its own.
_STATES = (16, 1)
# Relative to the size of a result. Kernels are much closer; a mistake is much further off.
_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}


def difference(
    tested: Backend,
    trusted: Backend,
    device: torch.device,
    dtypes: Iterable[torch.dtype] = tuple(_TOLERANCES),
    numbers_of_states: Iterable[int] = _STATES,
    cases: Iterable[str] = ('convolutions', 'norm', 'gated scans', 'sums of scans'),
    forms: Mapping[int, Sequence[Form]] | None = None,
) -> str | None:
    """Compare the ops of two backends, one by one, values and gradients.

    Args:
        tested (Backend): The one in doubt.
        trusted (Backend): Another one. It computes in float64 on the CPU: the products of a GPU
            may be in TF32.
        device (torch.device): Where the first one computes.
        dtypes (Iterable[torch.dtype]): Of activations. Defaults to all that kernels read.
        numbers_of_states (Iterable[int]): N of the scans. Defaults to that of Vim and one.
        cases (Iterable[str]): Which of ``CASES``. Defaults to all that a Vim runs.
        forms (Mapping[int, Sequence[Form]] | None): By N, what chooses between the kernels for
            such scans; each is compared. Defaults to None: what a problem of this size gets.

    Returns:
        The first result that differs, and by how much; None if none does.
    """
    plain = torch.autocast(device.type, enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), plain:
        for dtype, states, case in product(dtypes, numbers_of_states, cases):
            activations, parameters = CASES[case].inputs(states)
            inputs = [*(tensor.to(dtype) for tensor in activations), *parameters]
            exact = [tensor.double() for tensor in inputs]
            expected = _results(CASES[case], trusted, exact)
            for form in (forms or {}).get(states, (nullcontext,)):
                with form():
                    found = _results(CASES[case], tested, [each.to(device) for each in inputs])
                for number, (got, want) in enumerate(zip(found, expected)):
                    error = float((got.double().cpu() - want).norm() / want.norm())
                    if not error <= _TOLERANCES[dtype]:  # a NaN is not
                        return (
                            f'result {number} of the {case} with {states} states in {dtype} '
                            f'differs by {error:.1e} from {trusted.name!r}'
                        )
    return None


def _results(case: Case, backend: Backend, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Outputs, and the gradients of their sum."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    outs = case.call(backend, *leaves)
    grads = torch.autograd.grad(outs, leaves, [torch.ones_like(out) for out in outs])
    return [tensor.detach() for tensor in (*outs, *grads)]


def _draws() -> Callable[..., Tensor]:
    """Normal numbers, seeded, whatever the default device and dtype are."""
    generator = torch.Generator('cpu').manual_seed(0)
    return partial(torch.randn, generator=generator, device='cpu', dtype=torch.float32)


def _rows(draw: Callable[..., Tensor], *columns: int) -> Tensor:
    return draw(_BATCH, _LENGTH, *columns)


def _convolution_inputs(states: int) -> tuple[list[Tensor], list[Tensor]]:
    draw, E = _draws(), _CHANNELS
    weights = [draw(E, _WIDTH) / 2, draw(E), draw(E, _WIDTH) / 2, draw(E)]
    return [_rows(draw, E)], weights


def _norm_inputs(states: int) -> tuple[list[Tensor], list[Tensor]]:
    draw, E = _draws(), _CHANNELS
    return [_rows(draw, E), _rows(draw, E)], [draw(E)]


def _scan_inputs(E: int, R: int, states: int) -> tuple[list[Tensor], list[Tensor]]:
    """As in_proj leaves x and z; what the reverse scan reads, dbl of both; their parameters."""
    draw = _draws()
    dbl = [_rows(draw, R + 2 * states) for _ in range(2)]
    activations = [_rows(draw, 2 * E), _rows(draw, E), *dbl]
    parameters = [
        tensor
        for _ in range(2)
        for tensor in (draw(E, R) * R**-0.5, draw(E) - 2, -draw(E, states).exp(), draw(E))
    ]
    return activations, parameters


def _single_scan_inputs(states: int) -> tuple[list[Tensor], list[Tensor]]:
    draw, E = _draws(), _CHANNELS
    rows = [_rows(draw, E), _rows(draw, E) - 2, _rows(draw, E)]
    shared = [_rows(draw, _GROUPS, states) for _ in range(2)]
    return [*rows, *shared], [-draw(E, states).exp(), draw(E), draw(E)]


def _convolutions(backend: Backend, *inputs: Tensor) -> tuple[Tensor, ...]:
    return backend.bi_conv1d_silu(*inputs)


def _norm(backend: Backend, x: Tensor, added: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    return backend.add_rms_norm(x, added, weight, 1e-5)


def _scans(gated: bool, backend: Backend, xz: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The sum of both scans behind a gate, or in float32 without one."""
    x, z = xz.chunk(2, dim=-1)
    x_b, dbl_f, dbl_b, *parameters = inputs
    forward = ScanInputs(x, dbl_f, *parameters[:4])
    reverse = ScanInputs(x_b, dbl_b, *parameters[4:])
    gate, dtype = (z, z.dtype) if gated else (None, wide_dtype(z.dtype))
    out = backend.bidirectional_selective_scan(forward, reverse, gate, scale=0.5, out_dtype=dtype)
    return (out,)


def _single_scan(backend: Backend, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Steps and groups of channels of its own, a reverse direction, the last state."""
    u, delta, z, B, C, A, D, bias = inputs
    given = SelectiveInputs(u, delta, A, B, C, D, z, bias)
    return backend.selective_scan(given, True, True, _GROUPS)


CASES = {
    'convolutions': Case(_convolution_inputs, _convolutions),
    'norm': Case(_norm_inputs, _norm),
    # Aligned as those of a Vim are, whose kernels ask for it, and not.
    'gated scans': Case(partial(_scan_inputs, 40, 12), partial(_scans, True)),
    'sums of scans': Case(partial(_scan_inputs, _CHANNELS, 5), partial(_scans, False)),
    'single scan': Case(_single_scan_inputs, _single_scan),
}
