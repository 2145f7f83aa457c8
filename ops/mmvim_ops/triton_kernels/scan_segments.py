"""What lets the segments of a scan run side by side: the state, or the adjoint, before each.

A state is linear in the one before: a segment that begins with zero ends in what it adds, and
scales what arrives by exp(A sum(dt)). Where few channels would leave a device idle, a first pass
finds both for every segment, and a short one carries states from segment to segment.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmvim_ops.triton_kernels.device import VARYING
from mmvim_ops.triton_kernels.functions import (
    LOG2E,
    channel_parameter,
    load_channels,
    sigmoid,
)
from mmvim_ops.triton_kernels.scan_forward import step

__all__ = ['carry_kernel', 'segment_kernel']


@triton.jit(do_not_specialize=VARYING)
def segment_kernel(
    u,
    delta,
    weight,
    bias,
    A,
    B,
    C,
    z,
    grad_out,
    ends,
    steps,
    batches,
    length,
    groups,
    width,
    segment_length,
    scale,
    N: tl.constexpr,
    RANK: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A block of a group's channels, through one segment of one sequence that begins with zero.

    Args:
        u, delta, weight, bias, A, B, C, z, scale: As those of the kernels that follow it.
        grad_out: None, for the state; or rows (B, L, E), for its adjoint, from the last token on.
        ends: (segments, B, N, E), float32, contiguous: what the segment ends in, to be written.
        steps: (segments, B, E), float32, contiguous: the sum of its steps, to be written.
    """
    blocks = (width + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    inner = program % blocks * BLOCK + tl.arange(0, BLOCK)
    valid = inner < width
    group = program // blocks % groups
    channel = group * width + inner
    batch = (program // (blocks * groups) % batches).to(tl.int64)
    segment = program // (blocks * groups) // batches
    channels = groups * width

    rates = ()
    states = ()
    for n in tl.static_range(N):
        rate = tl.load(A + channel * N + n, mask=valid, other=0.0).to(tl.float32)
        rates = rates + (rate * LOG2E,)
        states = states + (tl.full((BLOCK,), 0.0, tl.float32),)
    weights = ()
    for r in tl.static_range(RANK):
        column = tl.load(weight + channel * RANK + r, mask=valid, other=0.0)
        weights = weights + (column.to(tl.float32),)
    offset = channel_parameter(bias, channel, valid)
    total = tl.full((BLOCK,), 0.0, tl.float32)

    start = segment * segment_length
    stop = tl.minimum(start + segment_length, length)
    for i in range(0, stop - start):
        if grad_out is None:
            token = tl.cast(start + i, tl.int64)
        else:
            token = tl.cast(stop - 1 - i, tl.int64)
        if REVERSE:
            token = length - 1 - token
        dt, _ = step(delta, weights, offset, batch, token, channel, valid, RANK, SOFTPLUS)
        total += dt
        after = ()
        if grad_out is None:
            dtu = dt * load_channels(u, batch, token, channel, valid)
            B_t = B.data + batch * B.batch + token * B.row + group * B.group
            for n in tl.static_range(N):
                fed = dtu * tl.load(B_t + n).to(tl.float32)
                after = after + (tl.exp2(dt * rates[n]) * states[n] + fed,)
        else:
            grad = load_channels(grad_out, batch, token, channel, valid) * scale
            if z is not None:
                gate = load_channels(z, batch, token, channel, valid)
                grad *= gate * sigmoid(gate)
            C_t = C.data + batch * C.batch + token * C.row + group * C.group
            for n in tl.static_range(N):
                adjoint = states[n] + grad * tl.load(C_t + n).to(tl.float32)
                after = after + (tl.exp2(dt * rates[n]) * adjoint,)
        states = after

    part = segment * batches + batch
    tl.store(steps + part * channels + channel, total, mask=valid)
    for n in tl.static_range(N):
        tl.store(ends + (part * N + n) * channels + channel, states[n], mask=valid)


@triton.jit(do_not_specialize=VARYING)
def carry_kernel(
    A,
    ends,
    steps,
    arriving,
    batches,
    channels,
    segments,
    N: tl.constexpr,
    ADJOINT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A block of channels of one sequence, from segment to segment.

    Args:
        A: (E, N), contiguous.
        ends, steps: What :func:`segment_kernel` wrote.
        arriving: (segments, B, N, E), float32, contiguous: the state before each segment, to be
            written but for the first; with ``ADJOINT`` the adjoint after each, but for the last.
        batches, channels: B and E.
    """
    blocks = (channels + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    channel = program % blocks * BLOCK + tl.arange(0, BLOCK)
    valid = channel < channels
    batch = (program // blocks).to(tl.int64)
    for i in range(0, segments - 1):
        if ADJOINT:
            part = (segments - 1 - i) * batches + batch
            following = part - batches
        else:
            part = i * batches + batch
            following = part + batches
        total = tl.load(steps + part * channels + channel, mask=valid, other=0.0)
        for n in tl.static_range(N):
            rate = tl.load(A + channel * N + n, mask=valid, other=0.0).to(tl.float32) * LOG2E
            place = (part * N + n) * channels + channel
            state = tl.exp2(rate * total) * tl.load(arriving + place, mask=valid, other=0.0)
            state += tl.load(ends + place, mask=valid, other=0.0)
            tl.store(arriving + (following * N + n) * channels + channel, state, mask=valid)
