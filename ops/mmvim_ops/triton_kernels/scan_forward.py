"""One direction of a scan, forwards: a thread holds all states of its channels in registers."""

from __future__ import annotations

import triton
import triton.language as tl

from mmvim_ops.triton_kernels.device import VARYING
from mmvim_ops.triton_kernels.functions import (
    aligned,
    channel_parameter,
    load_numbers,
    load_row,
    row_in,
    silu,
)
from mmvim_ops.triton_kernels.scan_parts import (
    first_states,
    parameters,
    part,
    place_of,
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
    ALIGNMENT: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
    EVEN: tl.constexpr,
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
        ALIGNMENT: Bytes that every token's dt | B | C begins and ends at a multiple of: 4 to 16.
        EVEN: Whether ``width`` is a multiple of ``BLOCK``.
    """
    inner, valid, channel, group, batch, segment = part(batches, groups, width, BLOCK, EVEN)
    channels = groups * width
    rates, weights, offset = parameters(A, weight, bias, channel, valid, N, RANK)
    states = first_states(arriving, segment * batches + batch, channels, channel, valid, N)
    skip = channel_parameter(D, channel, valid)

    start = segment * segment_length
    stop = tl.minimum(start + segment_length, length)
    token = place_of(start, length, REVERSE)
    row = row_in(dbl, batch, token) + group * dbl.group
    inputs = row_in(u, batch, token)
    place = (batch * length + token) * channels
    outputs = out + place
    if RANK == 0:
        deltas = row_in(delta, batch, token)
    if partial is not None:
        others = partial + place
    if z is not None:
        gates = row_in(z, batch, token)
    if checkpoints is not None:
        saved = checkpoints.data + tl.cast(start // chunk, tl.int64) * checkpoints.row
        saved += batch * checkpoints.batch + group * checkpoints.group
    forth: tl.constexpr = -1 if REVERSE else 1
    for first in range(start, stop, chunk):
        if checkpoints is not None:
            for n in tl.static_range(N):
                tl.store(saved + n * width + inner, states[n], mask=valid)
            saved += checkpoints.row
        for _ in range(0, tl.minimum(chunk, stop - first)):
            numbers = aligned(row, RANK + 2 * N, ALIGNMENT)
            source = numbers if RANK > 0 else deltas
            dt, _slope = step(source, weights, offset, channel, valid, RANK, SOFTPLUS)
            x = load_row(inputs, channel, valid)
            dtu = dt * x
            y = skip * x
            if partial is not None:
                y += load_row(others, channel, valid)
            B = load_numbers(numbers + RANK, N)
            C = load_numbers(numbers + RANK + N, N)
            after = ()
            for n in tl.static_range(N):
                state = tl.exp2(dt * rates[n]) * states[n] + dtu * B[n]
                y += state * C[n]
                after = after + (state,)
            states = after
            if z is not None:
                y *= silu(load_row(gates, channel, valid))
            if scale is not None:
                y *= scale
            tl.store(outputs + channel, y.to(out.dtype.element_ty), mask=valid)

            # To the next token. A pointer that goes along takes an instruction or two, an offset
            # of 64 bits that is computed anew several.
            row += forth * dbl.row
            inputs += forth * u.row
            outputs += forth * channels
            if RANK == 0:
                deltas += forth * delta.row
            if partial is not None:
                others += forth * channels
            if z is not None:
                gates += forth * z.row
    if last_state is not None and stop == length:
        for n in tl.static_range(N):
            target = last_state + (batch * channels + channel) * N + n
            tl.store(target, states[n], mask=valid)
