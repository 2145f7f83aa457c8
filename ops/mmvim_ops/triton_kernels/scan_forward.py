"""One direction of a scan, forwards: a thread holds all states of its channels in registers."""

from __future__ import annotations

import triton
import triton.language as tl

from mmvim_ops.triton_kernels.device import VARYING
from mmvim_ops.triton_kernels.functions import (
    channel_parameter,
    load_channels,
    load_numbers,
    silu,
)
from mmvim_ops.triton_kernels.scan_parts import (
    first_states,
    parameters,
    part,
    place_of,
    row_of,
    step,
)

__all__ = ['scan_forward_kernel']


@triton.jit(do_not_specialize=VARYING)
def scan_forward_kernel(
    u,
    dbl,
    delta,
    weight,
    bias,
    A,
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
    PAIRS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A block of a group's channels, through one segment of one sequence.

    ``out = (partial + C h + D u) silu(z) scale``, where what is None is left out.

    Args:
        u, z: Rows (B, L, E).
        dbl: Rows (B, L, G, RANK + 2N), float32: dt before its projection, B and C.
        delta: Rows (B, L, E) without ``RANK``.
        weight, bias, A, D: (E, R), (E,), (E, N), (E,), contiguous.
        partial: (B, L, E), contiguous, float32; may be ``out``.
        arriving: (segments, B, N, E), float32: the states before each segment.
        out: (B, L, E), contiguous.
        last_state: (B, E, N), contiguous.
        checkpoints: Rows (chunks, B, G, N, width), the last two contiguous: states before each
            chunk, to be written.
        batches, length, groups, width: B, L, G and E / G.
        chunk, segment_length: Tokens between saved states, and of a segment: whole chunks.
        PAIRS: Whether the numbers of dt, of B and of C can be loaded two by two.
    """
    inner, valid, channel, group, batch, segment = part(batches, groups, width, BLOCK)
    channels = groups * width
    rates, weights, offset = parameters(A, weight, bias, channel, valid, N, RANK)
    states = first_states(arriving, segment * batches + batch, channels, channel, valid, N)
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
            token = place_of(t, length, REVERSE)
            row = row_of(dbl, batch, token, group)
            dt, _ = step(
                delta, row, weights, offset, batch, token, channel, valid, RANK, PAIRS, SOFTPLUS
            )
            x = load_channels(u, batch, token, channel, valid)
            dtu = dt * x
            y = skip * x
            B = load_numbers(row + RANK, N, PAIRS)
            C = load_numbers(row + RANK + N, N, PAIRS)
            after = ()
            for n in tl.static_range(N):
                state = tl.exp2(dt * rates[n]) * states[n] + dtu * B[n]
                y += state * C[n]
                after = after + (state,)
            states = after
            place = (batch * length + token) * channels + channel
            if partial is not None:
                y += tl.load(partial + place, mask=valid, other=0.0)
            if z is not None:
                gate = load_channels(z, batch, token, channel, valid)
                y *= silu(gate)
            if scale is not None:
                y *= scale
            tl.store(out + place, y.to(out.dtype.element_ty), mask=valid)
    if last_state is not None and stop == length:
        for n in tl.static_range(N):
            target = last_state + (batch * channels + channel) * N + n
            tl.store(target, states[n], mask=valid)
