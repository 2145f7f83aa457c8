"""One direction of a scan: what it reads, into how many segments it goes, and its launches."""

from __future__ import annotations

import math
from functools import partial as partial_of
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmvim_ops.triton_kernels.device import Rows, guard, multiprocessors, rows, warp
from mmvim_ops.triton_kernels.scan_backward import scan_backward_kernel
from mmvim_ops.triton_kernels.scan_forward import scan_forward_kernel
from mmvim_ops.triton_kernels.scan_segments import carry_kernel, segment_kernel
from mmvim_ops.triton_kernels.tuning import Launch, Work, default, launch

__all__ = ['Direction', 'Gradients', 'scan', 'scan_backward']

# Warps that a multiprocessor has registers for in a backward pass, and those of one launch of it:
# each has a buffer of states in memory.
_WARPS_EACH, _MOST_WARPS = 8, 2048
# Tokens that segments are multiples of where no states are saved.
_UNIT = 64


class Direction(NamedTuple):
    """What one scan reads.

    A thread reads all numbers of a token's dt, B and C, as every other thread does that has
    channels of its group. So they come in float32, converted once for all of them.
    """

    u: Tensor
    dbl: Tensor  # (B, L, G, R + 2N), float32: dt before its projection, B and C
    delta: Tensor | None  # (B, L, E), without a weight: R is 0
    weight: Tensor | None  # (E, R)
    bias: Tensor | None
    A: Tensor
    D: Tensor | None
    softplus: bool
    reverse: bool
    groups: int

    def sizes(self, chunk: int, block: int) -> dict[str, Any]:
        """What both kernels are told about the shapes, with ``block`` channels a program."""
        batches, length, channels = self.u.shape
        rank, N = 0 if self.weight is None else self.weight.shape[1], self.A.shape[1]
        width = channels // self.groups
        apart = (rank + 2 * N, *self.dbl.stride()[:3], self.dbl.data_ptr() // self.dbl.itemsize)
        return dict(
            batches=batches,
            length=length,
            groups=self.groups,
            width=width,
            chunk=min(chunk, length),
            N=N,
            RANK=rank,
            ALIGNMENT=self.dbl.itemsize * math.gcd(4, *apart),
            SOFTPLUS=self.softplus,
            REVERSE=self.reverse,
            BLOCK=block,
            EVEN=width % block == 0,
        )

    def work(self, kernel: str) -> Work:
        """What the choice of a launch depends on."""
        rank = 0 if self.weight is None else self.weight.shape[1]
        return Work(kernel, self.u.dtype, self.A.shape[1], rank, self.u.numel())

    def tensors(self) -> dict[str, Any]:
        """What both kernels read."""
        parameters = dict(weight=self.weight, bias=self.bias, A=self.A, D=self.D)
        found: dict[str, Any] = {
            name: t if t is None else t.contiguous() for name, t in parameters.items()
        }
        delta = None if self.delta is None else rows(self.delta)
        return found | dict(u=rows(self.u), dbl=rows(self.dbl), delta=delta)


def _segment_length(given: Direction, programs: int, chunk: int) -> int:
    """Tokens of a segment: all, unless several segments leave fewer multiprocessors idle.

    Segments take a pass of their own, half as long as the scan. It pays where without them half of
    the warps that a device has registers for would be missing (not measured).
    """
    length = given.u.shape[1]
    wanted_warps = _WARPS_EACH * multiprocessors(given.u.device)
    segments = wanted_warps // max(programs, 1)
    if segments < 2:
        return length
    unit = chunk if chunk < length else _UNIT
    return max(1, -(-length // (unit * segments))) * unit


class Gradients(NamedTuple):
    """Of a direction's inputs; all but that of u in float32, that of delta before projection."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    bias: Tensor


def _saved(checkpoints: Tensor) -> Rows:
    """(chunks, B, G, N, E / G), as kernels take them."""
    chunk, batch, group = checkpoints.stride()[:3]
    return Rows(checkpoints, batch, chunk, group)


def scan(
    given: Direction,
    z: Tensor | None,
    partial: Tensor | None,
    scale: float,
    out: Tensor,
    checkpoints: Tensor,
    chunk: int,
    last_state: Tensor | None = None,
) -> None:
    """Run a direction into ``out``, which may be ``partial``, ``checkpoints``, ``last_state``."""
    if len(checkpoints) == 1:  # the state before the first token
        checkpoints.zero_()

    def run(form: Launch, out: Tensor) -> None:
        block = form.channels * form.warps * warp()
        sizes = given.sizes(chunk, block)
        programs = -(-sizes['width'] // block) * given.groups * sizes['batches']
        segment_length = _segment_length(given, programs * form.warps, chunk)
        segments = -(-sizes['length'] // segment_length)
        scan_forward_kernel[programs * segments,](
            z=None if z is None else rows(z),
            partial=partial,
            arriving=_arriving(given, chunk, segment_length, form) if segments > 1 else None,
            out=out,
            last_state=last_state,
            checkpoints=None if len(checkpoints) == 1 else _saved(checkpoints),
            segment_length=segment_length,
            scale=None if scale == 1.0 else scale,
            num_warps=form.warps,
            **given.tensors(),
            **sizes,
        )

    with guard(out.device):
        aside = torch.empty_like
        form = launch(given.work('forward'), out.device, lambda each: run(each, aside(out)))
        run(form, out)


def _arriving(
    given: Direction,
    chunk: int,
    segment_length: int,
    form: Launch,
    grad_out: Tensor | None = None,
    z: Tensor | None = None,
    scale: float = 1.0,
    last: Tensor | None = None,
) -> Tensor:
    """The state before every segment; with ``grad_out`` the adjoint after it, ``last`` the last.

    Returns:
        (segments, B, N, E) in float32.
    """
    block = form.channels * form.warps * warp()
    sizes, tensors = given.sizes(chunk, block), given.tensors()
    batches, length, N = sizes['batches'], sizes['length'], sizes['N']
    channels, segments = given.u.shape[2], -(-length // segment_length)
    on: Any = dict(dtype=torch.float32, device=given.u.device)
    ends, arriving = torch.empty((2, segments, batches, N, channels), **on).unbind(0)
    steps = torch.empty((segments, batches, channels), **on)
    first = arriving[-1 if grad_out is not None else 0]
    if last is None:
        first.zero_()
    else:
        first.copy_(last)
    programs = -(-sizes['width'] // block) * given.groups * batches * segments
    del tensors['D'], sizes['chunk']
    segment_kernel[programs,](
        z=None if z is None else rows(z),
        grad_out=None if grad_out is None else rows(grad_out),
        ends=ends,
        steps=steps,
        segment_length=segment_length,
        scale=scale,
        num_warps=form.warps,
        **tensors,
        **sizes,
    )
    carry_kernel[-(-channels // block) * batches,](
        A=tensors['A'],
        ends=ends,
        steps=steps,
        arriving=arriving,
        batches=batches,
        channels=channels,
        segments=segments,
        N=N,
        ADJOINT=grad_out is not None,
        BLOCK=block,
        num_warps=form.warps,
    )
    return arriving


def scan_backward(
    given: Direction,
    grad_out: Tensor,
    z: Tensor | None,
    scale: float,
    checkpoints: Tensor,
    chunk: int,
    arriving: Tensor | None = None,
    partial: Tensor | None = None,
    grad_z: Tensor | None = None,
    y_out: Tensor | None = None,
) -> Gradients:
    """Run a direction backwards.

    Args:
        given (Direction): What it read.
        grad_out (Tensor): (B, L, E).
        z (Tensor | None): (B, L, E), the gate.
        scale (float): The factor of the output.
        checkpoints (Tensor): (chunks, B, G, N, E / G), which it saved.
        chunk (int): Tokens between them.
        arriving (Tensor | None): (B, E, N), the gradient of the last state. Defaults to None: zero.
        partial (Tensor | None): (B, L, E), float32: what another direction adds to ``C h + D u``.
            Defaults to None: nothing.
        grad_z (Tensor | None): (B, L, E), takes the gradient of z. Defaults to None: not wanted.
        y_out (Tensor | None): (B, L, E), float32: takes ``C h + D u``. Defaults to None.
    """
    if arriving is not None:
        arriving = arriving.float().transpose(1, 2).contiguous()
    run = partial_of(
        _backward, given, grad_out, z, scale, checkpoints, chunk, arriving, partial, grad_z, y_out
    )
    with guard(grad_out.device):
        return run(launch(given.work('backward'), grad_out.device, run))


def _backward(
    given: Direction,
    grad_out: Tensor,
    z: Tensor | None,
    scale: float,
    checkpoints: Tensor,
    chunk: int,
    arriving: Tensor | None,
    partial: Tensor | None,
    grad_z: Tensor | None,
    y_out: Tensor | None,
    form: Launch,
) -> Gradients:
    """As :func:`scan_backward`, in a form; ``arriving`` is (B, N, E)."""
    block = warp()
    sizes = given.sizes(chunk, block)
    batches, length, groups, N = (sizes[name] for name in ('batches', 'length', 'groups', 'N'))
    blocks = -(-sizes['width'] // block)
    segment_length = _segment_length(given, blocks * groups * batches, chunk)
    segments = -(-length // segment_length)
    channels = given.u.shape[2]
    # Sequences of a launch, as many as there is a buffer for.
    launched = max(1, _MOST_WARPS // (blocks * groups * segments))
    launched = min(launched, max(batches, 1))

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=given.u.device)

    if segments > 1:
        forward = default(given.work('forward'))
        arriving = _arriving(given, chunk, segment_length, forward, grad_out, z, scale, arriving)
    grad_u = empty(*given.u.shape, dtype=given.u.dtype)
    grad_delta = empty(*given.u.shape)
    grad_A = empty(segments * batches, channels, N)
    grad_D, grad_bias = empty(2, segments * batches, channels).unbind(0)
    grad_B, grad_C = empty(2, blocks, batches, length, groups, N).unbind(0)
    pieces = -(-sizes['chunk'] // form.held)
    scratch = empty(launched * blocks * groups * segments, pieces, N, block)
    for first in range(0, batches, launched):
        here = min(launched, batches - first)
        scan_backward_kernel[here * blocks * groups * segments,](
            grad_out=rows(grad_out),
            z=None if z is None else rows(z),
            partial=partial,
            arriving=arriving,
            checkpoints=_saved(checkpoints),
            scratch=scratch,
            first_batch=first,
            launched_batches=here,
            segment_length=segment_length,
            grad_u=grad_u,
            grad_delta=grad_delta,
            grad_A=grad_A,
            grad_B=grad_B,
            grad_C=grad_C,
            grad_D=grad_D,
            grad_bias=grad_bias,
            grad_z=grad_z,
            y_out=y_out,
            scale=scale,
            STATES=1 << (N - 1).bit_length(),
            HELD=form.held,
            num_warps=1,
            **given.tensors(),
            **sizes,
        )
    return Gradients(
        grad_u,
        grad_delta,
        *(part.sum(0) for part in (grad_A, grad_B, grad_C, grad_D, grad_bias)),
    )
