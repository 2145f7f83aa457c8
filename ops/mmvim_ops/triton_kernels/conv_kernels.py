"""A depthwise convolution with SiLU, forwards and backwards: a thread walks along its channels."""

from __future__ import annotations

import triton
import triton.language as tl

from mmvim_ops.triton_kernels.device import VARYING, device_function
from mmvim_ops.triton_kernels.functions import channel_parameter, load_channels, sigmoid, silu

__all__ = ['conv_backward_kernel', 'conv_forward_kernel']


@device_function
def _taps(weight, channel, valid, WIDTH: tl.constexpr):
    """The weight of a block's channels, W times (BLOCK,)."""
    taps = ()
    for k in tl.static_range(WIDTH):
        tap = tl.load(weight + channel * WIDTH + k, mask=valid, other=0.0)
        taps = taps + (tap.to(tl.float32),)
    return taps


@device_function
def _input(x, batch, p, length, channel, valid, REVERSE: tl.constexpr):
    """X at a position of the scan, zeros before the first and beyond the last token."""
    token = tl.cast(p, tl.int64)
    if REVERSE:
        token = length - 1 - token
    return load_channels(x, batch, token, channel, valid & (p >= 0) & (p < length))


@device_function
def _before(x, batch, start, length, channel, valid, WIDTH: tl.constexpr, REVERSE: tl.constexpr):
    """X at the W - 1 positions before the first."""
    window = ()
    for k in tl.static_range(WIDTH - 1):
        p = start - (WIDTH - 1) + k
        window = window + (_input(x, batch, p, length, channel, valid, REVERSE),)
    return window


@device_function
def _convolved(taps, offset, window, x, WIDTH: tl.constexpr):
    """What SiLU takes."""
    y = offset + taps[WIDTH - 1] * x
    for k in tl.static_range(WIDTH - 1):
        y += taps[k] * window[k]
    return y


@device_function
def _moved(window, value, WIDTH: tl.constexpr):
    """A window of W - 1 values, one position further."""
    moved = ()
    for k in tl.static_range(WIDTH - 2):
        moved = moved + (window[k + 1],)
    if WIDTH > 1:
        moved = moved + (value,)
    return moved


@triton.jit(do_not_specialize=VARYING)
def conv_forward_kernel(
    x,
    weight,
    bias,
    out,
    batches,
    length,
    channels,
    segment_length,
    WIDTH: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A block of channels, through one segment of one sequence.

    Args:
        x: Rows (B, L, E).
        weight, bias: (E, W) and (E,) or None, contiguous.
        out: (B, L, E), contiguous.
        batches, length, channels: B, L and E.
        segment_length: Tokens of a segment.
    """
    blocks = (channels + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    channel = program % blocks * BLOCK + tl.arange(0, BLOCK)
    valid = channel < channels
    batch = (program // blocks % batches).to(tl.int64)
    start = program // blocks // batches * segment_length
    stop = tl.minimum(start + segment_length, length)

    taps = _taps(weight, channel, valid, WIDTH)
    offset = channel_parameter(bias, channel, valid)
    window = _before(x, batch, start, length, channel, valid, WIDTH, REVERSE)
    for p in range(start, stop):
        new = _input(x, batch, p, length, channel, valid, REVERSE)
        y = _convolved(taps, offset, window, new, WIDTH)
        window = _moved(window, new, WIDTH)
        token = tl.cast(p, tl.int64)
        if REVERSE:
            token = length - 1 - token
        place = out + (batch * length + token) * channels + channel
        tl.store(place, silu(y).to(out.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=VARYING)
def conv_backward_kernel(
    grad_out,
    x,
    weight,
    bias,
    partial,
    grad_x,
    grad_weight,
    grad_bias,
    batches,
    length,
    channels,
    segment_length,
    WIDTH: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradients of a block of channels, through one segment of one sequence.

    A token's x takes from the gradients of W outputs: the walk goes W - 1 positions beyond the
    segment, whose part of the other sums is its own.

    Args:
        grad_out: Rows (B, L, E). Otherwise as :func:`conv_forward_kernel`.
        partial: (B, L, E), contiguous, float32: added to the gradient of x. None: nothing.
        grad_x: (B, L, E), contiguous.
        grad_weight, grad_bias: (segments, B, E, W) and (segments, B, E), float32: parts of sums.
    """
    blocks = (channels + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    channel = program % blocks * BLOCK + tl.arange(0, BLOCK)
    valid = channel < channels
    part = program // blocks
    batch = (part % batches).to(tl.int64)
    start = part // batches * segment_length
    stop = tl.minimum(start + segment_length, length)

    taps = _taps(weight, channel, valid, WIDTH)
    offset = channel_parameter(bias, channel, valid)
    window = _before(x, batch, start, length, channel, valid, WIDTH, REVERSE)
    sums = ()
    grads = ()  # of what SiLU took, at the W - 1 positions before
    for k in tl.static_range(WIDTH):
        sums = sums + (tl.full((BLOCK,), 0.0, tl.float32),)
        if k > 0:
            grads = grads + (tl.full((BLOCK,), 0.0, tl.float32),)
    sum_bias = tl.full((BLOCK,), 0.0, tl.float32)
    for p in range(start, stop + WIDTH - 1):
        new = _input(x, batch, p, length, channel, valid, REVERSE)
        y = _convolved(taps, offset, window, new, WIDTH)
        half = sigmoid(y)
        slope = half * (1.0 + y * (1.0 - half))
        grad = _input(grad_out, batch, p, length, channel, valid, REVERSE) * slope
        own = tl.where(p < stop, grad, 0.0)
        sum_bias += own
        added = ()
        for k in tl.static_range(WIDTH - 1):
            added = added + (sums[k] + own * window[k],)
        sums = added + (sums[WIDTH - 1] + own * new,)
        total = taps[0] * grad
        for k in tl.static_range(WIDTH - 1):
            total += taps[WIDTH - 1 - k] * grads[k]
        window = _moved(window, new, WIDTH)
        grads = _moved(grads, grad, WIDTH)

        first = p - (WIDTH - 1)  # the position whose gradient is complete
        token = tl.cast(first, tl.int64)
        if REVERSE:
            token = length - 1 - token
        place = (batch * length + token) * channels + channel
        written = valid & (first >= start)
        if partial is not None:
            total += tl.load(partial + place, mask=written, other=0.0)
        tl.store(grad_x + place, total.to(grad_x.dtype.element_ty), mask=written)

    place = tl.cast(part, tl.int64) * channels + channel
    tl.store(grad_bias + place, sum_bias, mask=valid)
    for k in tl.static_range(WIDTH):
        tl.store(grad_weight + place * WIDTH + k, sums[k], mask=valid)
