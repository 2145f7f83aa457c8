"""The scan of an installed mamba-ssm behind our signatures, for comparison and as a CUDA fallback.

mamba-ssm has the scan alone, so the convolutions are those of :mod:`mmvim_ops.composed`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmvim_ops.composed import bi_conv1d_silu, bidirectional_with, conv1d_silu

__all__ = ['bi_conv1d_silu', 'bidirectional_selective_scan', 'conv1d_silu', 'selective_scan']


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
    out, last_state = result if return_last_state else (result, None)
    out = out.transpose(1, 2)
    out = out.flip(1) if reverse else out
    return (out, last_state) if return_last_state else out


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
    """See :func:`mmvim_ops.functional.bidirectional_selective_scan`."""
    return bidirectional_with(
        selective_scan,
        *(x_f, x_b, dbl_f, dbl_b, dt_w_f, dt_w_b, dt_b_f, dt_b_b, A_f, A_b, D_f, D_b, z, scale),
    )
