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
    aligned,
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

__all__ = ['carry_kernel', 'segment_kernel']


@triton.jit(do_not_specialize=VARYING)
def segment_kernel(
    u,
    dbl,
    delta,
    weight,
    bias,
    A,
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
    ALIGNMENT: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
    EVEN: tl.constexpr,
):
    """A block of a group's channels, through one segment of one sequence that begins with zero.

    Args:
        u, dbl, delta, weight, bias, A, z, scale, ALIGNMENT: As those of the kernels that follow it.
        grad_out: None, for the state; or rows (B, L, E), for its adjoint, from the last token on.
        ends: (segments, B, N, E), float32, contiguous: what the segment ends in, to be written.
        steps: (segments, B, E), float32, contiguous: the sum of its steps, to be written.
    """
    _inner, valid, channel, group, batch, segment = part(batches, groups, width, BLOCK, EVEN)
    channels = groups * width
    rates, weights, offset = parameters(A, weight, bias, channel, valid, N, RANK)
    states = first_states(None, 0, channels, channel, valid, N)
    total = tl.full((BLOCK,), 0.0, tl.float32)

    start = segment * segment_length
    stop = tl.minimum(start + segment_length, length)
    adjoint: tl.constexpr = grad_out is not None
    forth: tl.constexpr = -1 if adjoint != REVERSE else 1
    token = place_of(stop - 1 if adjoint else start, length, REVERSE)
    row = row_in(dbl, batch, token) + group * dbl.group
    if RANK == 0:
        deltas = row_in(delta, batch, token)
    if not adjoint:
        inputs = row_in(u, batch, token)
    else:
        grads = row_in(grad_out, batch, token)
        if z is not None:
            gates = row_in(z, batch, token)
    for _ in range(start, stop):
        numbers = aligned(row, RANK + 2 * N, ALIGNMENT)
        source = numbers if RANK > 0 else deltas
        dt, _slope = step(source, weights, offset, channel, valid, RANK, SOFTPLUS)
        total += dt
        after = ()
        if not adjoint:
            dtu = dt * load_row(inputs, channel, valid)
            B = load_numbers(numbers + RANK, N)
            for n in tl.static_range(N):
                after = after + (tl.exp2(dt * rates[n]) * states[n] + dtu * B[n],)
            inputs += forth * u.row
        else:
            grad = load_row(grads, channel, valid) * scale
            if z is not None:
                grad *= silu(load_row(gates, channel, valid))
                gates += forth * z.row
            C = load_numbers(numbers + RANK + N, N)
            for n in tl.static_range(N):
                after = after + (tl.exp2(dt * rates[n]) * (states[n] + grad * C[n]),)
            grads += forth * grad_out.row
        states = after
        row += forth * dbl.row
        if RANK == 0:
            deltas += forth * delta.row

    place = segment * batches + batch
    tl.store(steps + place * channels + channel, total, mask=valid)
    for n in tl.static_range(N):
        tl.store(ends + (place * N + n) * channels + channel, states[n], mask=valid)


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
            here = (segments - 1 - i) * batches + batch
            following = here - batches
        else:
            here = i * batches + batch
            following = here + batches
        total = tl.load(steps + here * channels + channel, mask=valid, other=0.0)
        for n in tl.static_range(N):
            rate = tl.load(A + channel * N + n, mask=valid, other=0.0).to(tl.float32) * LOG2E
            place = (here * N + n) * channels + channel
            state = tl.exp2(rate * total) * tl.load(arriving + place, mask=valid, other=0.0)
            state += tl.load(ends + place, mask=valid, other=0.0)
            tl.store(arriving + (following * N + n) * channels + channel, state, mask=valid)
