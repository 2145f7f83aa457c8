"""What the kernels of a scan share: the part of a program, its parameters, and a token's step."""

from __future__ import annotations

import triton.language as tl

from mmvim_ops.triton_kernels.device import device_function
from mmvim_ops.triton_kernels.functions import (
    LOG2E,
    aligned,
    channel_parameter,
    load_numbers,
    load_row,
    row_in,
    softplus,
)

__all__ = ['first_states', 'parameters', 'part', 'place_of', 'row_of', 'step']


@device_function
def part(batches, groups, width, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    """A block of a group's channels, one sequence and one segment of it.

    Args:
        batches, groups, width: B, G and the channels of a group.
        BLOCK: Channels of a program.
        EVEN: Whether ``width`` is a multiple of it: all are there, and loads need no zeros.

    Returns:
        The channels within their group and whether they are there, (BLOCK,) each; the channels
        among all, (BLOCK,); the group, the sequence and the segment.
    """
    blocks = (width + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    inner = program % blocks * BLOCK + tl.arange(0, BLOCK)
    group = program // blocks % groups
    batch = (program // (blocks * groups) % batches).to(tl.int64)
    segment = program // (blocks * groups) // batches
    valid = inner < width
    if EVEN:
        valid = tl.full((BLOCK,), True, tl.int1)
    return inner, valid, group * width + inner, group, batch, segment


@device_function
def parameters(A, weight, bias, channel, valid, N: tl.constexpr, RANK: tl.constexpr):
    """Of a block's channels.

    Returns:
        A log2(e), of which powers of two are taken, N times (BLOCK,); the columns of the weight of
        dt, R times; its bias.
    """
    rates = ()
    for n in tl.static_range(N):
        rate = tl.load(A + channel * N + n, mask=valid, other=0.0).to(tl.float32)
        rates = rates + (rate * LOG2E,)
    weights = ()
    for r in tl.static_range(RANK):
        column = tl.load(weight + channel * RANK + r, mask=valid, other=0.0)
        weights = weights + (column.to(tl.float32),)
    return rates, weights, channel_parameter(bias, channel, valid)


@device_function
def first_states(arriving, row, channels, channel, valid, N: tl.constexpr):
    """A row of ``arriving`` (rows, N, E), float32, N times (BLOCK,); zeros where it is None."""
    states = ()
    for n in tl.static_range(N):
        if arriving is None:
            states = states + (tl.full(channel.shape, 0.0, tl.float32),)
        else:
            source = arriving + (row * N + n) * channels
            states = states + (tl.load(source + channel, mask=valid, other=0.0),)
    return states


@device_function
def place_of(t, length, REVERSE: tl.constexpr):
    """Where the token at a position of the scan lies."""
    token = tl.cast(t, tl.int64)
    if REVERSE:
        token = length - 1 - token
    return token


@device_function
def row_of(dbl, batch, token, group, SIZE: tl.constexpr, ALIGNMENT: tl.constexpr):
    """Pointer to dt | B | C of a token, ``SIZE`` numbers."""
    return aligned(row_in(dbl, batch, token) + group * dbl.group, SIZE, ALIGNMENT)


@device_function
def step(
    row,
    weights,
    offset,
    channel,
    valid,
    RANK: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):
    """Dt of a token, (BLOCK,), and its derivative by what softplus took.

    Args:
        row: Pointer to dt before its projection, or without ``RANK`` to that of every channel.
        weights, offset, channel, valid: A block's.
    """
    if RANK == 0:
        raw = offset + load_row(row, channel, valid)
    else:
        dts = load_numbers(row, RANK)
        raw = weights[0] * dts[0]
        for r in tl.static_range(1, RANK):
            raw += weights[r] * dts[r]
        raw += offset  # last: a sum is rounded as coarsely as it is large
    if SOFTPLUS:
        return softplus(raw)
    else:
        return raw, tl.full(raw.shape, 1.0, tl.float32)
