"""One direction of a scan, forwards: a thread holds all states of its channels in registers."""

from __future__ import annotations

import triton
import triton.language as tl

from mmvim_ops.triton_kernels.device import VARYING, device_function
from mmvim_ops.triton_kernels.functions import (
    LOG2E,
    channel_parameter,
    load_channels,
    sigmoid,
    softplus,
)

__all__ = ['scan_forward_kernel', 'step']


@device_function
def step(
    delta,
    weights,
    offset,
    batch,
    token,
    channel,
    valid,
    RANK: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):
    """Dt of a token, (BLOCK,), and its derivative by what softplus took."""
    if RANK == 0:
        raw = offset + load_channels(delta, batch, token, channel, valid)
    else:
        raw = offset
        row = delta.data + batch * delta.batch + token * delta.row
        for r in tl.static_range(RANK):
            raw += weights[r] * tl.load(row + r).to(tl.float32)
    if SOFTPLUS:
        return softplus(raw)
    else:
        return raw, tl.full(raw.shape, 1.0, tl.float32)


@triton.jit(do_not_specialize=VARYING)
def scan_forward_kernel(
    u,
    delta,
    weight,
    bias,
    A,
    B,
    C,
    D,
    z,
    partial,
    arriving,
    out,
    last_state,
    checkpoints,
    batches,
    length,
    groups,
    width,
    chunk,
    segment_length,
    scale,
    N: tl.constexpr,
    RANK: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A block of a group's channels, through one segment of one sequence.

    ``out = (partial + C h + D u) silu(z) scale``, where what is None is left out.

    Args:
        u, delta, z: Rows (B, L, E); delta with ``RANK`` is dt (B, L, R), before the projection.
        weight, bias, A, D: (E, R), (E,), (E, N), (E,), contiguous.
        B, C: Rows (B, L, G, N).
        partial: (B, L, E), contiguous, float32; may be ``out``.
        arriving: (segments, B, N, E), float32: the states before each segment.
        out: (B, L, E), contiguous.
        last_state: (B, E, N), contiguous.
        checkpoints: Rows (chunks, B, G, N, width), the last two contiguous: states before each
            chunk, to be written.
        batches, length, groups, width: B, L, G and E / G.
        chunk, segment_length: Tokens between saved states, and of a segment: whole chunks.
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
        if arriving is not None:
            source = arriving + ((segment * batches + batch) * N + n) * channels
            states = states + (tl.load(source + channel, mask=valid, other=0.0),)
        else:
            states = states + (tl.full((BLOCK,), 0.0, tl.float32),)
    weights = ()
    for r in tl.static_range(RANK):
        column = tl.load(weight + channel * RANK + r, mask=valid, other=0.0)
        weights = weights + (column.to(tl.float32),)
    offset = channel_parameter(bias, channel, valid)
    skip = channel_parameter(D, channel, valid)

    start = segment * segment_length
    stop = tl.minimum(start + segment_length, length)
    for first in range(start, stop, chunk):
        if checkpoints is not None:
            saved = checkpoints.data + tl.cast(first // chunk, tl.int64) * checkpoints.row
            saved += batch * checkpoints.batch + group * checkpoints.group
            for n in tl.static_range(N):
                tl.store(saved + n * width + inner, states[n], mask=valid)
        for t in range(first, tl.minimum(first + chunk, stop)):
            token = tl.cast(t, tl.int64)
            if REVERSE:
                token = length - 1 - token
            dt, _ = step(delta, weights, offset, batch, token, channel, valid, RANK, SOFTPLUS)
            x = load_channels(u, batch, token, channel, valid)
            dtu = dt * x
            y = skip * x
            B_t = B.data + batch * B.batch + token * B.row + group * B.group
            C_t = C.data + batch * C.batch + token * C.row + group * C.group
            after = ()
            for n in tl.static_range(N):
                fed = dtu * tl.load(B_t + n).to(tl.float32)
                state = tl.exp2(dt * rates[n]) * states[n] + fed
                y += state * tl.load(C_t + n).to(tl.float32)
                after = after + (state,)
            states = after
            place = (batch * length + token) * channels + channel
            if partial is not None:
                y += tl.load(partial + place, mask=valid, other=0.0)
            if z is not None:
                gate = load_channels(z, batch, token, channel, valid)
                y *= gate * sigmoid(gate)
            tl.store(out + place, (y * scale).to(out.dtype.element_ty), mask=valid)
    if last_state is not None and stop == length:
        for n in tl.static_range(N):
            target = last_state + (batch * channels + channel) * N + n
            tl.store(target, states[n], mask=valid)
