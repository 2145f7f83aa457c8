"""Numerical differentiation of every op in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from mmvim_ops_by_name import bidirectional
from torch import Tensor

import mmvim_ops

Inputs = Callable[..., dict[str, Tensor]]


def gradcheck(function: Callable[..., Tensor], tensors: dict[str, Tensor], fast: bool) -> None:
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    names = list(leaves)
    assert torch.autograd.gradcheck(
        lambda *values: function(**dict(zip(names, values))),
        tuple(leaves.values()),
        fast_mode=fast,
    )


@pytest.mark.parametrize('L', [1, 2, 63, 64, 65, 197])
@pytest.mark.parametrize('reverse', [False, True])
@pytest.mark.parametrize('groups', [1, 2])
def test_selective_scan(L: int, reverse: bool, groups: int, scan_inputs: Inputs) -> None:
    inputs = scan_inputs(B=2 if L < 3 else 1, L=L, E=4, N=2, groups=groups, seed=L)

    def scan(**tensors: Tensor) -> Tensor:
        out = mmvim_ops.selective_scan(
            **tensors, delta_softplus=True, reverse=reverse, groups=groups, backend='chunked'
        )
        assert isinstance(out, Tensor)
        return out

    gradcheck(scan, inputs, fast=L > 2)


@pytest.mark.parametrize('L', [1, 2, 63, 64, 65, 197])
def test_bidirectional(L: int, bidirectional_inputs: Inputs) -> None:
    inputs = bidirectional_inputs(B=2 if L < 3 else 1, L=L, E=3, N=2, R=2, seed=L)
    gradcheck(lambda **p: bidirectional(**p, backend='chunked'), inputs, L > 2)


@pytest.mark.parametrize('reverse', [False, True])
@pytest.mark.parametrize(('L', 'width'), [(1, 4), (2, 3), (9, 1), (9, 4)])
def test_conv1d_silu(L: int, width: int, reverse: bool) -> None:
    torch.manual_seed(0)
    tensors = dict(
        x=torch.randn(2, L, 3, dtype=torch.float64),
        weight=torch.randn(3, width, dtype=torch.float64),
        bias=torch.randn(3, dtype=torch.float64),
    )
    gradcheck(
        lambda **p: mmvim_ops.conv1d_silu(**p, reverse=reverse, backend='chunked'), tensors, False
    )
