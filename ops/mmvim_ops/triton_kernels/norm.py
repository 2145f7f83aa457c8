"""The kernels of the normalisation of a sum.

The operators are declared in :mod:`mmvim_ops.library`, which has their arguments.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmvim_ops.triton_kernels.device import guard, rows
from mmvim_ops.triton_kernels.norm_kernels import norm_backward_kernel, norm_forward_kernel

__all__ = ['add_rms_norm', 'add_rms_norm_backward']

# Programs of a backward pass, each of which leaves a part of the weight's gradient (not measured).
_PROGRAMS = 1024


def _shape(channels: int) -> dict[str, int]:
    """Channels of a program and warps that share them, 8 or more a thread (not measured)."""
    block = 1 << (channels - 1).bit_length()
    return dict(BLOCK=block, num_warps=min(16, max(1, block // 256)))


def add_rms_norm(
    x: Tensor, added: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel of ``add_rms_norm``."""
    batches, length, channels = x.shape
    normed, total = (torch.empty(x.shape, dtype=t.dtype, device=x.device) for t in (weight, x))
    scales = torch.empty((batches, length), dtype=torch.float32, device=x.device)
    with guard(x.device):
        norm_forward_kernel[batches * length,](
            x=rows(x),
            added=rows(added),
            weight=weight.contiguous(),
            normed=normed,
            total=total,
            scales=scales,
            length=length,
            channels=channels,
            eps=eps,
            **_shape(channels),
        )
    return normed, total, scales


def add_rms_norm_backward(
    grad_normed: Tensor, grad_total: Tensor | None, total: Tensor, scales: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """The kernel of ``add_rms_norm_backward``."""
    batches, length, channels = total.shape
    each = -(-batches * length // _PROGRAMS) or 1
    programs = -(-batches * length // each)
    grad_x = torch.empty(total.shape, dtype=total.dtype, device=total.device)
    parts = torch.empty((programs, channels), dtype=torch.float32, device=total.device)
    with guard(total.device):
        norm_backward_kernel[programs,](
            grad_normed=rows(grad_normed),
            grad_total=None if grad_total is None else rows(grad_total),
            total=rows(total),
            scales=scales.contiguous(),
            weight=weight.contiguous(),
            grad_x=grad_x,
            grad_weight=parts,
            batches=batches,
            length=length,
            channels=channels,
            rows_each=each,
            **_shape(channels),
        )
    return grad_x, parts.sum(0).to(weight.dtype)
