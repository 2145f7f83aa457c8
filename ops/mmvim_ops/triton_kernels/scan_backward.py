"""One direction of a scan, backwards: a warp's channels, from the last chunk to the first."""

from __future__ import annotations

import triton
import triton.language as tl

from mmvim_ops.triton_kernels.device import VARYING
from mmvim_ops.triton_kernels.functions import (
    LN2,
    channel_parameter,
    channel_sums,
    load_channels,
    load_numbers,
    row_in,
    sigmoid,
)
from mmvim_ops.triton_kernels.scan_parts import (
    first_states,
    parameters,
    part,
    place_of,
    row_of,
    step,
)

__all__ = ['scan_backward_kernel']


@triton.jit(do_not_specialize=VARYING)
def scan_backward_kernel(
    grad_out,
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
    checkpoints,
    scratch,
    grad_u,
    grad_delta,
    grad_A,
    grad_B,
    grad_C,
    grad_D,
    grad_bias,
    grad_z,
    y_out,
    first_batch,
    launched_batches,
    batches,
    length,
    groups,
    width,
    chunk,
    segment_length,
    scale,
    N: tl.constexpr,
    STATES: tl.constexpr,
    RANK: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
    EVEN: tl.constexpr,
    HELD: tl.constexpr,
):
    """The gradients of a block of a group's channels, through one segment of one sequence.

    Of each chunk, the states before every ``HELD`` tokens are computed from the saved one and
    written down; then, from the last to the first, those of ``HELD`` tokens and their decays are
    computed again into registers, and the adjoint of the state goes back over them. A token beyond
    the end has a step of zero, which changes neither.

    Args:
        grad_out: Rows (B, L, E). Otherwise as :func:`scan_forward_kernel` up to ``checkpoints``.
        arriving: (segments, B, N, E), float32: the adjoint after each segment.
        partial: (B, L, E), contiguous, float32: ``C h + D u`` of another scan; read for ``grad_z``.
        scratch: (programs, ceil(chunk / HELD), N, BLOCK), float32.
        grad_u, grad_delta: (B, L, E), contiguous; the latter before softplus and projection.
        grad_A, grad_D, grad_bias: (segments, B, E, N) or (segments, B, E), float32: parts of sums.
        grad_B, grad_C: (blocks of a group, B, L, G, N), float32: parts of sums.
        first_batch, launched_batches: Sequences of this launch.
        grad_z, y_out: (B, L, E), contiguous: the gradient of z, and in float32 ``C h + D u``.
        STATES: The power of two that is not below N.
        HELD: Tokens whose states are held in registers.
    """
    inner, valid, channel, group, batch, segment = part(
        launched_batches, groups, width, BLOCK, EVEN
    )
    batch += first_batch
    lane = tl.arange(0, BLOCK)
    channels = groups * width
    rates, weights, offset = parameters(A, weight, bias, channel, valid, N, RANK)
    adjoints = first_states(arriving, segment * batches + batch, channels, channel, valid, N)
    sums_A = first_states(None, 0, channels, channel, valid, N)
    skip = channel_parameter(D, channel, valid)
    sum_D = tl.full((BLOCK,), 0.0, tl.float32)
    sum_bias = tl.full((BLOCK,), 0.0, tl.float32)
    program = tl.program_id(0)
    block = program % ((width + BLOCK - 1) // BLOCK)
    slots = scratch + tl.cast(program, tl.int64) * ((chunk + HELD - 1) // HELD) * N * BLOCK + lane

    start = segment * segment_length
    stop = tl.minimum(start + segment_length, length)
    chunks = (stop - start + chunk - 1) // chunk
    for earlier in range(0, chunks):
        first = start + (chunks - 1 - earlier) * chunk
        last = tl.minimum(first + chunk, stop)
        pieces = (last - first + HELD - 1) // HELD
        saved = checkpoints.data + tl.cast(first // chunk, tl.int64) * checkpoints.row
        saved += batch * checkpoints.batch + group * checkpoints.group
        states = ()
        for n in tl.static_range(N):
            states = states + (tl.load(saved + n * width + inner, mask=valid, other=0.0),)
        for piece in range(0, pieces):
            for n in tl.static_range(N):
                tl.store(slots + (piece * N + n) * BLOCK, states[n])
            for s in tl.static_range(HELD):
                t = first + piece * HELD + s
                token = place_of(tl.minimum(t, last - 1), length, REVERSE)
                row = row_of(dbl, batch, token, group, RANK + 2 * N, ALIGNMENT)
                source = row if RANK > 0 else row_in(delta, batch, token)
                dt, _ = step(source, weights, offset, channel, valid, RANK, SOFTPLUS)
                dt = tl.where(t < last, dt, 0.0)
                dtu = dt * load_channels(u, batch, token, channel, valid)
                B = load_numbers(row + RANK, N)
                after = ()
                for n in tl.static_range(N):
                    after = after + (tl.exp2(dt * rates[n]) * states[n] + dtu * B[n],)
                states = after
        tl.debug_barrier()  # before the block reads what it wrote

        for later in range(0, pieces):
            piece = pieces - 1 - later
            states = ()
            for n in tl.static_range(N):
                states = states + (tl.load(slots + (piece * N + n) * BLOCK),)
            steps = ()
            slopes = ()
            inputs = ()
            decays = ()  # N a token, as in the next
            befores = ()
            for s in tl.static_range(HELD):
                t = first + piece * HELD + s
                token = place_of(tl.minimum(t, last - 1), length, REVERSE)
                row = row_of(dbl, batch, token, group, RANK + 2 * N, ALIGNMENT)
                source = row if RANK > 0 else row_in(delta, batch, token)
                dt, slope = step(source, weights, offset, channel, valid, RANK, SOFTPLUS)
                dt = tl.where(t < last, dt, 0.0)
                x = load_channels(u, batch, token, channel, valid)
                dtu = dt * x
                B = load_numbers(row + RANK, N)
                befores = befores + states
                after = ()
                for n in tl.static_range(N):
                    decay = tl.exp2(dt * rates[n])
                    decays = decays + (decay,)
                    after = after + (decay * states[n] + dtu * B[n],)
                states = after
                steps = steps + (dt,)
                slopes = slopes + (slope,)
                inputs = inputs + (x,)
            befores = befores + states

            for back in tl.static_range(HELD):
                t = first + piece * HELD + (HELD - 1 - back)
                here = t < last
                token = place_of(tl.minimum(t, last - 1), length, REVERSE)
                dt = steps[HELD - 1 - back]
                x = inputs[HELD - 1 - back]
                dtu = dt * x
                grad = load_channels(grad_out, batch, token, channel, valid & here) * scale
                grad_y = grad
                if z is not None:
                    gate = load_channels(z, batch, token, channel, valid)
                    half = sigmoid(gate)
                    grad_y = grad * gate * half
                row = row_of(dbl, batch, token, group, RANK + 2 * N, ALIGNMENT)
                target = (((block * batches + batch) * length + token) * groups + group) * N + lane
                summed = (lane < N) & here
                parts = ()
                for n in tl.static_range(N):
                    parts = parts + (grad_y * befores[(HELD - back) * N + n],)
                tl.store(grad_C + target, channel_sums(parts, N, STATES, BLOCK), mask=summed)
                B = load_numbers(row + RANK, N)
                C = load_numbers(row + RANK + N, N)
                y = skip * x
                grad_fed = tl.full((BLOCK,), 0.0, tl.float32)
                grad_dt = tl.full((BLOCK,), 0.0, tl.float32)
                parts = ()
                left = ()
                sums = ()
                for n in tl.static_range(N):
                    if z is not None:
                        y += befores[(HELD - back) * N + n] * C[n]
                    adjoint = adjoints[n] + grad_y * C[n]
                    parts = parts + (dtu * adjoint,)
                    grad_fed += adjoint * B[n]
                    adjoint *= decays[(HELD - 1 - back) * N + n]
                    grad_exponent = adjoint * befores[(HELD - 1 - back) * N + n]
                    grad_dt += grad_exponent * rates[n]
                    sums = sums + (sums_A[n] + grad_exponent * dt,)
                    left = left + (adjoint,)
                tl.store(grad_B + target, channel_sums(parts, N, STATES, BLOCK), mask=summed)
                adjoints = left
                sums_A = sums
                grad_raw = (grad_dt * LN2 + grad_fed * x) * tl.where(
                    here, slopes[HELD - 1 - back], 0.0
                )
                sum_bias += grad_raw
                sum_D += grad_y * x

                place = (batch * length + token) * channels + channel
                written = valid & here
                grad_x = (grad_fed * dt + grad_y * skip).to(grad_u.dtype.element_ty)
                tl.store(grad_u + place, grad_x, mask=written)
                tl.store(grad_delta + place, grad_raw.to(grad_delta.dtype.element_ty), mask=written)
                if z is not None:
                    if partial is not None:
                        y += tl.load(partial + place, mask=written, other=0.0)
                    if y_out is not None:
                        tl.store(y_out + place, y, mask=written)
                    if grad_z is not None:
                        slope = half * (1.0 + gate * (1.0 - half))
                        value = (grad * y * slope).to(grad_z.dtype.element_ty)
                        tl.store(grad_z + place, value, mask=written)
        tl.debug_barrier()  # before the next chunk takes its place

    place = (segment * batches + batch) * channels + channel
    tl.store(grad_D + place, sum_D, mask=valid)
    tl.store(grad_bias + place, sum_bias, mask=valid)
    for n in tl.static_range(N):
        tl.store(grad_A + place * N + n, sums_A[n], mask=valid)
