"""The kernels of the convolutions: one direction after the other.

The operators are declared in :mod:`mmvim_ops.library`, which has their arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmvim_ops.triton_kernels.conv_kernels import conv_backward_kernel, conv_forward_kernel
from mmvim_ops.triton_kernels.device import guard, rows, wanted, warp

__all__ = ['bi_conv1d_silu', 'bi_conv1d_silu_backward', 'conv1d_silu', 'conv1d_silu_backward']

# Tokens that a thread walks along (not measured); W - 1 more are read before them, and backwards
# computed beyond them.
_SEGMENT = 64


def conv1d_silu(x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool) -> Tensor:
    """The kernel of ``conv1d_silu``."""
    batches, length, channels = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block = 2 * warp()
    programs = -(-channels // block) * batches * -(-length // _SEGMENT)
    with guard(x.device):
        conv_forward_kernel[programs,](
            x=rows(x),
            weight=weight.contiguous(),
            bias=None if bias is None else bias.contiguous(),
            out=out,
            batches=batches,
            length=length,
            channels=channels,
            segment_length=_SEGMENT,
            WIDTH=weight.shape[1],
            REVERSE=reverse,
            BLOCK=block,
            num_warps=1,
        )
    return out


def bi_conv1d_silu(
    x: Tensor, w_f: Tensor, b_f: Tensor | None, w_b: Tensor, b_b: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The kernel of ``bi_conv1d_silu``."""
    return conv1d_silu(x, w_f, b_f, False), conv1d_silu(x, w_b, b_b, True)


def _backward(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    reverse: bool,
    partial: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of a direction, that of x in ``dtype`` with ``partial`` (B, L, E) added."""
    batches, length, channels = x.shape
    width, segments = weight.shape[1], -(-length // _SEGMENT)
    grad_x = torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device)
    parts: Any = dict(dtype=torch.float32, device=x.device)
    grad_weight = torch.empty((segments, batches, channels, width), **parts)
    grad_bias = torch.empty((segments, batches, channels), **parts)
    block = 2 * warp()
    with guard(x.device):
        conv_backward_kernel[-(-channels // block) * batches * segments,](
            grad_out=rows(grad_out),
            x=rows(x),
            weight=weight.contiguous(),
            bias=None if bias is None else bias.contiguous(),
            partial=partial,
            grad_x=grad_x,
            grad_weight=grad_weight,
            grad_bias=grad_bias,
            batches=batches,
            length=length,
            channels=channels,
            segment_length=_SEGMENT,
            WIDTH=width,
            REVERSE=reverse,
            BLOCK=block,
            num_warps=1,
        )
    return grad_x, grad_weight.sum((0, 1)), grad_bias.sum((0, 1))


def conv1d_silu_backward(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    reverse: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    """The kernel of ``conv1d_silu_backward``."""
    return wanted(_backward(grad_out, x, weight, bias, reverse), (x, weight, bias), needs)


def bi_conv1d_silu_backward(
    grad_f: Tensor,
    grad_b: Tensor,
    x: Tensor,
    w_f: Tensor,
    b_f: Tensor | None,
    w_b: Tensor,
    b_b: Tensor | None,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    """The kernel of ``bi_conv1d_silu_backward``."""
    partial, *forward = _backward(grad_f, x, w_f, b_f, False, dtype=torch.float32)
    grad_x, *reverse = _backward(grad_b, x, w_b, b_b, True, partial)
    return wanted((grad_x, *forward, *reverse), (x, w_f, b_f, w_b, b_b), needs)
