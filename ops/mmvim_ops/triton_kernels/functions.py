"""What kernels share: a block's channels in memory, elementary functions in float32, and sums."""

from __future__ import annotations

import math

import triton.language as tl
from triton.language.extra import libdevice

from mmvim_ops.triton_kernels.device import device_function, is_interpreted

__all__ = [
    'LN2',
    'LOG2E',
    'aligned',
    'channel_parameter',
    'channel_sums',
    'load_channels',
    'load_numbers',
    'load_row',
    'row_in',
    'sigmoid',
    'silu',
    'softplus',
]

LOG2E = tl.constexpr(math.log2(math.e))
LN2 = tl.constexpr(math.log(2))
_INTERPRETED = tl.constexpr(is_interpreted())


@device_function
def row_in(rows, batch, token):
    """Pointer to a token's numbers."""
    return rows.data + batch * rows.batch + token * rows.row


@device_function
def load_row(row, channel, valid):
    """Those of a block's channels, (BLOCK,)."""
    return tl.load(row + channel, mask=valid, other=0.0).to(tl.float32)


@device_function
def load_channels(rows, batch, token, channel, valid):
    """A token's numbers of a block's channels, (BLOCK,)."""
    return load_row(row_in(rows, batch, token), channel, valid)


@device_function
def channel_parameter(parameter, channel, valid):
    """A parameter of a block's channels, (BLOCK,); zeros where there is none."""
    if parameter is None:
        return tl.full(channel.shape, 0.0, tl.float32)
    else:
        return tl.load(parameter + channel, mask=valid, other=0.0).to(tl.float32)


@device_function
def aligned(place, SIZE: tl.constexpr, ALIGNMENT: tl.constexpr):
    """A pointer to numbers that lie together, in a form that shows how its address is aligned.

    NVIDIA's assembler joins up to four loads of neighbours to one of 16 bytes where it sees that
    the address is a multiple of that: where its last bits are cleared, zero as they were. Cleared
    are those of the end: what is added to cleared bits is written into them, and hides that.

    Args:
        place: Pointer to float32.
        SIZE: How many numbers.
        ALIGNMENT: Bytes of which the address of their end is a multiple, a power of two.
    """
    end = (place + SIZE).to(tl.int64) & -ALIGNMENT
    return end.to(tl.pointer_type(tl.float32)) - SIZE


@device_function
def load_numbers(place, COUNT: tl.constexpr):
    """Numbers that lie together and that all channels share, as many scalars."""
    numbers = ()
    for i in tl.static_range(COUNT):
        numbers = numbers + (tl.load(place + i),)
    return numbers


@device_function
def _quotient(a, b):
    """Divide by a number from 1 on, without the guards of a division against others."""
    if _INTERPRETED:
        return a / b
    else:
        return libdevice.fast_dividef(a, b)


@device_function
def sigmoid(x):
    """1 / (1 + e^-x)."""
    return _quotient(1.0, 1.0 + tl.exp2(x * -LOG2E))


@device_function
def silu(x):
    """The product with the sigmoid."""
    return _quotient(x, 1.0 + tl.exp2(x * -LOG2E))


@device_function
def softplus(x):
    """log(1 + e^x) and its derivative.

    With e = e^-|x|, log(1 + e) is e times a polynomial: small steps keep all their digits. Its
    relative error on [0, 1] is 3e-8, the least that one of this degree can have.
    """
    e = tl.exp2(tl.abs(x) * -LOG2E)
    series = -0.030065773 + e * 0.005364819
    series = -0.13753800 + e * (0.079204507 + e * series)
    series = -0.24857163 + e * (0.19153655 + e * series)
    series = -0.49999648 + e * (0.33321324 + e * series)
    dt = tl.maximum(x, 0.0) + e * (1.0 + e * series)
    return dt, _quotient(tl.where(x >= 0.0, 1.0, e), 1.0 + e)


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
