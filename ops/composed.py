"""Ops put together from ordinary torch calls and a generic scan, under ordinary autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmvim_ops.precision import wide

__all__ = ['bi_conv1d_silu', 'bidirectional_with', 'conv1d_silu']


def conv1d_silu(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, reverse: bool = False
) -> Tensor:
    """See :func:`mmvim_ops.functional.conv1d_silu`."""
    length, last = x.shape[1], weight.shape[1] - 1
    padded = F.pad(wide(x), (0, 0, 0, last) if reverse else (0, 0, last, 0))
    taps = wide(weight).t().flip(0) if reverse else wide(weight).t()
    # One multiply-add a tap: F.conv1d would first transpose to channels-first and back.
    y = padded[:, :length] * taps[0]
    for k in range(1, last + 1):
        y = torch.addcmul(y, padded[:, k : k + length], taps[k])
    if bias is not None:
        y = y + wide(bias)
    return F.silu(y).to(x.dtype)


def bi_conv1d_silu(
    x: Tensor, w_f: Tensor, b_f: Tensor | None, w_b: Tensor, b_b: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See :func:`mmvim_ops.functional.bi_conv1d_silu`."""
    return conv1d_silu(x, w_f, b_f), conv1d_silu(x, w_b, b_b, reverse=True)


def bidirectional_with(
    scan: Callable[..., Any],
    x_f: Tensor,
    x_b: Tensor,
    dbl_f: Tensor,
    dbl_b: Tensor,
    dt_w_f: Tensor,
    dt_w_b: Tensor,
    dt_b_f: Tensor,
    dt_b_b: Tensor,
    A_f: Tensor,
    A_b: Tensor,
    D_f: Tensor,
    D_b: Tensor,
    z: Tensor,
    scale: float,
) -> Tensor:
    """:func:`mmvim_ops.functional.bidirectional_selective_scan` by means of a generic ``scan``.

    Both directions are one forward scan of 2 E channels in two groups, the second group flipped:
    half the calls of two scans.
    """
    states = A_f.shape[1]
    sizes = (dt_w_f.shape[1], states, states)
    dt_f, B_f, C_f = wide(dbl_f).split(sizes, dim=-1)
    dt_b, B_b, C_b = wide(dbl_b).flip(1).split(sizes, dim=-1)
    y: Tensor = scan(
        torch.cat((wide(x_f), wide(x_b).flip(1)), dim=-1),
        torch.cat((dt_f @ wide(dt_w_f).t(), dt_b @ wide(dt_w_b).t()), dim=-1),
        torch.cat((A_f, A_b)),
        torch.stack((B_f, B_b), dim=2),
        torch.stack((C_f, C_b), dim=2),
        D=torch.cat((D_f, D_b)),
        delta_bias=torch.cat((dt_b_f, dt_b_b)),
        delta_softplus=True,
        groups=2,
    )
    y_f, y_b = y.chunk(2, dim=-1)
    return ((y_f + y_b.flip(1)) * (F.silu(wide(z)) * scale)).to(x_f.dtype)
