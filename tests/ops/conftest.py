"""Seeded inputs, error measures and goldens shared by the tests of the ops."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

DEFAULT_GOLDENS = Path(__file__).resolve().parents[2].parent / 'shared' / 'goldens'


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
    """Run a function of named tensors; its output and, by input name, the gradients."""

    def run(
        function: Callable[..., Any], tensors: dict[str, Tensor], **options: Any
    ) -> dict[str, Tensor]:
        leaves = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        for leaf in leaves.values():
            leaf.requires_grad_()
        out = function(**leaves, **options)
        generator = torch.Generator().manual_seed(99)
        weight = torch.randn(out.shape, generator=generator, dtype=torch.float64)
        grads = torch.autograd.grad(out, tuple(leaves.values()), weight.to(out.dtype))
        return {'out': out.detach()} | {f'grad of {n}': g for n, g in zip(leaves, grads)}

    return run


@pytest.fixture
def assert_close() -> Callable[..., None]:
    """Check two dicts of tensors by maximum error over maximum and by relative rms error."""

    def check(
        actual: dict[str, Tensor],
        expected: dict[str, Tensor],
        out: tuple[float, float],
        grads: tuple[float, float] | None = None,
    ) -> None:
        assert actual.keys() == expected.keys()
        for name in expected:
            largest, rms = out if name == 'out' or grads is None else grads
            got, want = actual[name].double(), expected[name].double()
            assert got.shape == want.shape, name
            assert torch.isfinite(got).all(), name
            error = got - want
            # Where all is zero (L = 1 leaves A without influence), nothing else will do.
            assert error.abs().max() <= largest * want.abs().max(), name
            assert error.norm() <= rms * want.norm(), name

    return check
