"""What kernels share: a block's channels in memory, elementary functions in float32, and sums."""

from __future__ import annotations

import math

import triton.language as tl

from mmvim_ops.triton_kernels.device import device_function

__all__ = [
    'LN2',
    'LOG2E',
    'channel_parameter',
    'channel_sums',
    'load_channels',
    'sigmoid',
    'softplus',
]

LOG2E = tl.constexpr(math.log2(math.e))
LN2 = tl.constexpr(math.log(2))


@device_function
def load_channels(rows, batch, token, channel, valid):
    """A token's numbers of a block's channels, (BLOCK,)."""
    place = rows.data + batch * rows.batch + token * rows.row
    return tl.load(place + channel, mask=valid, other=0.0).to(tl.float32)


@device_function
def channel_parameter(parameter, channel, valid):
    """A parameter of a block's channels, (BLOCK,); zeros where there is none."""
    if parameter is None:
        return tl.full(channel.shape, 0.0, tl.float32)
    else:
        return tl.load(parameter + channel, mask=valid, other=0.0).to(tl.float32)


@device_function
def sigmoid(x):
    """1 / (1 + e^-x)."""
    return 1.0 / (1.0 + tl.exp2(x * -LOG2E))


@device_function
def softplus(x):
    """log(1 + e^x) and its derivative, as ``softplus`` of csrc/cuda/portable.h has them.

    With e = e^-|x|, log(1 + e) is 2 atanh(e / (2 + e)), a series in the square of that, 1/9 at
    most: a product with e, so that small steps keep all their digits. The relative error of the
    series is 5e-9.
    """
    magnitude = tl.minimum(tl.abs(x), 128.0)  # from where on e is zero
    high = magnitude * -LOG2E
    e = tl.exp2(high)
    e += e * (tl.fma(magnitude, -LOG2E, -high) * LN2)  # what the product lost
    larger = 1.0 / (1.0 + e)
    s = e / (2.0 + e)
    w = s * s
    series = w * (0.33333206 + w * (0.20010850 + w * (0.13999571 + w * 0.14012229)))
    return tl.maximum(x, 0.0) + 2.0 * (s + s * series), tl.where(x >= 0.0, larger, e * larger)


@device_function
def channel_sums(values, COUNT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of each of ``COUNT`` values of a warp's channels: that of value n in lane n.

    Two values at a time are exchanged between lanes that keep one each: half as many remain, and
    half as many lanes to sum over. It takes 4 instructions a value, where a sum of each takes 10.

    Args:
        values: COUNT tensors (BLOCK,), BLOCK the number of lanes.
        COUNT: How many, up to BLOCK.
        WIDTH: The power of two that is not below COUNT.
        BLOCK: A power of two.
    """
    lane = tl.arange(0, BLOCK)
    zero = tl.full((BLOCK,), 0.0, tl.float32)
    for _ in tl.static_range(WIDTH - COUNT):
        values = values + (zero,)
    for bit in tl.static_range(5):
        if (WIDTH >> (bit + 1)) > 0:
            upper = (lane & (WIDTH >> (bit + 1))) != 0
            kept = ()
            for i in tl.static_range(WIDTH >> (bit + 1)):
                a = values[i]
                b = values[i + (WIDTH >> (bit + 1))]
                given = tl.gather(tl.where(upper, a, b), lane ^ (WIDTH >> (bit + 1)), 0)
                kept = kept + (tl.where(upper, b, a) + given,)
            values = kept
    total = values[0]
    for bit in tl.static_range(6):
        if (WIDTH << bit) < BLOCK:
            total += tl.gather(total, lane ^ (WIDTH << bit), 0)
    return total
