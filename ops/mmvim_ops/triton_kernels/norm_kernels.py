"""Root-mean-square normalisation of a sum, forwards and backwards: a row of channels at once."""

from __future__ import annotations

import triton
import triton.language as tl

from mmvim_ops.triton_kernels.device import VARYING
from mmvim_ops.triton_kernels.functions import load_channels

__all__ = ['norm_backward_kernel', 'norm_forward_kernel']


@triton.jit
def _plus(a, b):
    return a + b


@triton.jit(do_not_specialize=VARYING)
def norm_forward_kernel(
    x, added, weight, normed, total, scales, length, channels, eps, BLOCK: tl.constexpr
):
    """One row.

    Args:
        x, added: Rows (B, L, C).
        weight: (C,), contiguous.
        normed, total: (B, L, C), contiguous.
        scales: (B, L), float32.
        length, channels: L and C.
        BLOCK: The power of two that is not below C.
    """
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    valid = channel < channels
    batch = row // length
    token = row % length
    plain = load_channels(x, batch, token, channel, valid)
    plain += load_channels(added, batch, token, channel, valid)
    rounded = plain.to(total.dtype.element_ty)
    value = rounded.to(tl.float32)
    scale = 1.0 / tl.sqrt_rn(tl.reduce(value * value, 0, _plus) / channels + eps)
    tl.store(scales + row, scale)
    place = row * channels + channel
    tl.store(total + place, rounded, mask=valid)
    factor = tl.load(weight + channel, mask=valid, other=0.0).to(tl.float32)
    tl.store(normed + place, (value * scale * factor).to(normed.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=VARYING)
def norm_backward_kernel(
    grad_normed,
    grad_total,
    total,
    scales,
    weight,
    grad_x,
    grad_weight,
    batches,
    length,
    channels,
    rows_each,
    BLOCK: tl.constexpr,
):
    """Some rows, one after the other; formulas as in :mod:`mmvim_ops.pure_torch.norm`.

    Args:
        grad_normed, grad_total, total: Rows (B, L, C); grad_total may be None.
        scales: (B, L), contiguous.
        weight: (C,), contiguous.
        grad_x: (B, L, C), contiguous.
        grad_weight: (programs, C), float32: parts of a sum.
        batches, length, channels: B, L and C.
        rows_each: Rows of a program.
        BLOCK: The power of two that is not below C.
    """
    program = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    valid = channel < channels
    factor = tl.load(weight + channel, mask=valid, other=0.0).to(tl.float32)
    sums = tl.full((BLOCK,), 0.0, tl.float32)
    first = program * rows_each
    for row in range(first, tl.minimum(first + rows_each, batches * length)):
        batch = row // length
        token = row % length
        x = load_channels(total, batch, token, channel, valid)
        grad = load_channels(grad_normed, batch, token, channel, valid)
        scale = tl.load(scales + row)
        through = grad * factor
        mean = tl.reduce(through * x, 0, _plus) / channels
        change = scale * (through - x * (scale * scale * mean))
        if grad_total is not None:
            change += load_channels(grad_total, batch, token, channel, valid)
        place = row * channels + channel
        tl.store(grad_x + place, change.to(grad_x.dtype.element_ty), mask=valid)
        sums += grad * x * scale
    tl.store(grad_weight + program * channels + channel, sums, mask=valid)
