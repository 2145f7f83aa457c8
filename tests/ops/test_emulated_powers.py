"""Powers of two by multiply-adds, as float32 decays may be computed on a GPU, on the CPU."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from torch import Tensor


def powers_of_two(emulation: Any, x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    emulation.c.mmvim_emulation_exp2_exact(
        *(ctypes.c_void_p(t.data_ptr()) for t in (x, y)), ctypes.c_int64(x.numel())
    )
    return y


def test_powers_by_multiply_adds(emulation: Any) -> None:
    x = torch.linspace(-126, 127.9, 2**20)
    error = powers_of_two(emulation, x).double() / torch.exp2(x.double()) - 1
    assert error.abs().max() < 1.8e-7


@pytest.mark.parametrize('exponent', [8, 12, 16, 20])
def test_powers_near_zero_have_no_bias(exponent: int, emulation: Any) -> None:
    """What is lost or gained at every token of a slow decay."""
    x = -torch.linspace(1, 2, 2**16) * 2.0**-exponent
    error = powers_of_two(emulation, x).double() / torch.exp2(x.double()) - 1
    assert error.mean().abs() < 1e-9 and error.abs().max() < 6e-8


def test_extreme_powers(emulation: Any) -> None:
    inf, nan = float('inf'), float('nan')
    x = torch.tensor([0.0, -0.0, -1.0, 3.0, -127.0, -1e30, -inf, 128.0, 1e30, inf, nan])
    found = powers_of_two(emulation, x)
    expected = torch.tensor([1.0, 1.0, 0.5, 8.0, 0.0, 0.0, 0.0, inf, inf, inf, nan])
    assert torch.equal(found.nan_to_num(-1), expected.nan_to_num(-1))
