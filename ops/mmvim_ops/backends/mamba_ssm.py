"""The scan of an installed mamba-ssm behind our signatures, for comparison and as a CUDA fallback.

mamba-ssm has the scan alone, so convolutions and normalisation are pure torch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmvim_ops.conv import bi_conv1d_silu, conv1d_silu
from mmvim_ops.norm import add_rms_norm
from mmvim_ops.precision import wide

__all__ = [
    'add_rms_norm',
    'bi_conv1d_silu',
    'bidirectional_selective_scan',
    'conv1d_silu',
    'selective_scan',
]


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    reverse: bool = False,
    groups: int = 1,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """See :func:`mmvim_ops.functional.selective_scan`."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def channels_first(tensor: Tensor) -> Tensor:
        """(B, L, ...) -> (B, ..., L) in the dtype of u, in scan order."""
        tensor = tensor.to(u.dtype)
        return (tensor.flip(1) if reverse else tensor).movedim(1, -1)

    grouped = (*u.shape[:2], groups, A.shape[1])
    result: Any = selective_scan_fn(
        channels_first(u),
        channels_first(delta),
        A.float(),
        channels_first(B.reshape(grouped)),
        channels_first(C.reshape(grouped)),
        D=None if D is None else D.float(),
        z=None if z is None else channels_first(z),
        delta_bias=None if delta_bias is None else delta_bias.float(),
        delta_softplus=delta_softplus,
        return_last_state=return_last_state,
    )
    out: Tensor = (result[0] if return_last_state else result).transpose(1, 2)
    out = out.flip(1) if reverse else out
    return (out, result[1]) if return_last_state else out


def bidirectional_selective_scan(
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
    scale: float = 0.5,
) -> Tensor:
    """See :func:`mmvim_ops.functional.bidirectional_selective_scan`.

    Both directions are one forward scan of 2 E channels in two groups, the second group flipped.
    """
    states = A_f.shape[1]
    sizes = (dt_w_f.shape[1], states, states)
    dt_f, B_f, C_f = wide(dbl_f).split(sizes, dim=-1)
    dt_b, B_b, C_b = wide(dbl_b).flip(1).split(sizes, dim=-1)
    y = selective_scan(
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
    assert isinstance(y, Tensor)  # no last state was asked for
    y_f, y_b = y.chunk(2, dim=-1)
    return ((y_f + y_b.flip(1)) * (F.silu(wide(z)) * scale)).to(x_f.dtype)
