"""Seeded inputs, error measures and goldens shared by the tests of the ops."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmvim_ops import native

DEFAULT_GOLDENS = Path(__file__).resolve().parents[2].parent / 'shared' / 'goldens'
# (maximum error over maximum, relative rms error) of outputs and of gradients, by their dtype.
TOLERANCES = {
    torch.float64: ((1e-12, 1e-12), (1e-11, 1e-11)),
    torch.float32: ((2e-6, 5e-7), (2e-5, 5e-6)),
    torch.bfloat16: ((8e-3, 3e-3), (8e-3, 3e-3)),
    torch.float16: ((1e-3, 5e-4), (1e-3, 5e-4)),
}
# The largest parts of an error that the rounding of an exact result to a dtype explains.
_ROUNDING = {torch.bfloat16: 1.01, torch.float16: 1.01}


@pytest.fixture
def each_isa() -> Iterator[Iterator[str]]:
    """Names of the instruction sets that this machine runs, each in use while its turn lasts."""
    if native.path() is None:
        pytest.skip(f'no native library: {native.problem()}')
    before = native.isa()

    def walk() -> Iterator[str]:
        for name in native.isas():
            native.use_isa(name)
            yield name

    yield walk()
    native.use_isa(before)


@pytest.fixture
def golden() -> Callable[[str], dict[str, Tensor]]:
    """Loader of ``ops/<name>.npz`` as float64 tensors; skips where the goldens are absent."""
    numpy = pytest.importorskip('numpy')
    folder = Path(os.environ.get('MMVIM_GOLDENS', DEFAULT_GOLDENS)) / 'ops'
    if not folder.is_dir():
        pytest.skip(f'no goldens at {folder}; set MMVIM_GOLDENS')

    def load(name: str) -> dict[str, Tensor]:
        with numpy.load(folder / f'{name}.npz') as archive:
            return {key: torch.from_numpy(archive[key]).double() for key in archive.files}

    return load


@pytest.fixture
def scan_inputs() -> Callable[..., dict[str, Tensor]]:
    """Inputs of a generic scan by name; activations in ``dtype``, parameters at least float32.

    Some steps are negative: a scan without softplus would grow, not decay.
    """

    def make(
        B: int = 2,
        L: int = 17,
        E: int = 6,
        N: int = 4,
        groups: int = 1,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
    ) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        activations = {
            'u': randn(B, L, E),
            'delta': randn(B, L, E) - 2,
            'B': randn(B, L, groups, N),
            'C': randn(B, L, groups, N),
            'z': randn(B, L, E),
        }
        parameters = {
            'A': -torch.exp(randn(E, N)),
            'D': randn(E),
            'delta_bias': 0.5 * randn(E),
        }
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        inputs = {name: value.to(dtype) for name, value in activations.items()}
        return inputs | {name: value.to(wide) for name, value in parameters.items()}

    return make


@pytest.fixture
def bidirectional_inputs() -> Callable[..., dict[str, Tensor]]:
    """Inputs of the bidirectional scan by name, in the order of its signature."""

    def make(
        B: int = 2,
        L: int = 17,
        E: int = 6,
        N: int = 4,
        R: int = 3,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
    ) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        wide = torch.float64 if dtype == torch.float64 else torch.float32
        values: dict[str, Tensor] = {}
        for name in ('x_f', 'x_b'):
            values[name] = randn(B, L, E).to(dtype)
        for name in ('dbl_f', 'dbl_b'):
            values[name] = randn(B, L, R + 2 * N).to(dtype)
        for name in ('dt_w_f', 'dt_w_b'):
            values[name] = (randn(E, R) * R**-0.5).to(wide)
        for name in ('dt_b_f', 'dt_b_b'):
            values[name] = (0.5 * randn(E) - 2).to(wide)
        for name in ('A_f', 'A_b'):
            values[name] = (-torch.exp(randn(E, N))).to(wide)
        for name in ('D_f', 'D_b'):
            values[name] = randn(E).to(wide)
        values['z'] = randn(B, L, E).to(dtype)
        return values

    return make


@pytest.fixture
def value_and_grads() -> Callable[..., dict[str, Tensor]]:
    """Run a function of named tensors; its outputs and, by input name, the gradients.

    What outputs are weighted by fits into every dtype, so that all have the same gradients.
    """

    def run(
        function: Callable[..., Any], tensors: dict[str, Tensor], **options: Any
    ) -> dict[str, Tensor]:
        leaves = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        for leaf in leaves.values():
            leaf.requires_grad_()
        result = function(**leaves, **options)
        outs = result if isinstance(result, tuple) else (result,)
        generator = torch.Generator().manual_seed(99)
        weights = [torch.randn(out.shape, generator=generator).bfloat16() for out in outs]
        weights = [weight.to(out.dtype) for weight, out in zip(weights, outs)]
        grads = torch.autograd.grad(outs, tuple(leaves.values()), weights)
        names = ('out', *(f'out {index}' for index in range(1, len(outs))))
        found = {name: out.detach() for name, out in zip(names, outs)}
        return found | {f'grad of {name}': grad for name, grad in zip(leaves, grads)}

    return run


def _measure(got: Tensor, want: Tensor) -> tuple[float, float]:
    """Largest error over the largest value, and relative rms error; zeros have to be zeros."""
    error = got.double() - want
    if not error.any():
        return 0.0, 0.0
    return float(error.abs().max() / want.abs().max()), float(error.norm() / want.norm())


@pytest.fixture
def assert_close() -> Callable[..., None]:
    """Check two dicts of tensors by maximum error over maximum and by relative rms error.

    Without tolerances, those of each tensor's dtype hold. ``floor`` is what an error may come to in
    any case: results by name that are as good as can be had, give or take a half.
    """

    def check(
        actual: dict[str, Tensor],
        expected: dict[str, Tensor],
        out: tuple[float, float] | None = None,
        grads: tuple[float, float] | None = None,
        where: object = '',
        floor: dict[str, Tensor] | None = None,
    ) -> None:
        assert actual.keys() == expected.keys()
        for name in expected:
            got, want = actual[name], expected[name].double()
            limits = TOLERANCES[got.dtype][not name.startswith('out')]
            if out is not None:
                limits = out if name.startswith('out') or grads is None else grads
            assert got.shape == want.shape, (where, name)
            assert torch.isfinite(got).all(), (where, name)
            # A few half-precision numbers may miss the rms by the rounding of an exact result.
            rounding = _measure(want.to(got.dtype), want)[1] * _ROUNDING.get(got.dtype, 0.0)
            limits = limits[0], max(limits[1], rounding)
            if floor is not None and name in floor:
                limits = tuple(max(a, 1.5 * b) for a, b in zip(limits, _measure(floor[name], want)))
            found = _measure(got, want)
            assert found[0] <= limits[0] and found[1] <= limits[1], (
                f'{name} {where}: errors (maximum, rms) {found}, tolerances {limits}'
            )

    return check
