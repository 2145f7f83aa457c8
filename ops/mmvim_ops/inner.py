"""A Vim block between in_proj and out_proj: convolutions, x_proj, scan, gate and sum.

Called one after the other, they leave autograd with the outputs of both convolutions, (B, L, E)
each: in half precision about 40% of what it keeps. Here they are computed again for the
backward pass, a few multiply-adds a channel. Saved beside the inputs are x_proj's outputs and the
states of the scan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmvim_ops import conv
from mmvim_ops.backends import chunked
from mmvim_ops.backends import native as fused
from mmvim_ops.chunk_scan import chunk_length
from mmvim_ops.precision import full_precision

__all__ = ['vim_inner']


class _Passes(NamedTuple):
    """What training calls in an implementation.

    Attributes:
        convolve: ``bi_conv1d_silu``.
        convolve_backward: The kernel of its backward pass.
        scan: The operator ``bidirectional_selective_scan``, past its autograd rule.
        scan_backward: The operator of its backward pass.
        chunk: Tokens between two states that the scan saves.
        readable: Gives a tensor the dtype in which the kernels read it.
    """

    convolve: Callable[..., tuple[Tensor, Tensor]]
    convolve_backward: Callable[..., tuple[Tensor, ...]]
    scan: Callable[..., tuple[Tensor, Tensor]]
    scan_backward: Callable[..., tuple[Tensor, ...]]
    chunk: int
    readable: Callable[[Tensor | None], Tensor | None]

    def gradients(
        self,
        backward: Callable[..., tuple[Tensor, ...]],
        grad_outputs: Sequence[Tensor | None],
        inputs: Sequence[Tensor | None],
        saved: Sequence[object],
        needs: Sequence[bool],
        *options: bool,
    ) -> list[Tensor | None]:
        """Call a backward kernel: a gradient in the dtype of its input, or None, for each input."""
        tensors = map(self.readable, (*grad_outputs, *inputs))
        grads = backward(*tensors, *saved, list(needs), *options)
        return [
            grad.to(given.dtype) if need and given is not None else None
            for grad, given, need in zip(grads, inputs, needs)
        ]


def _passes(implementation: ModuleType, x: Tensor, states: int) -> _Passes | None:
    """The passes of an implementation whose scans are operators, or None."""
    if implementation is fused:
        kernels = fused._KERNELS[x.device.type]
        operators, prefix = kernels.operators, ''
        convolve_backward = operators.bi_conv1d_silu_backward.default
        chunk, readable = kernels.chunk, kernels.readable
    elif implementation is chunked:
        operators, prefix = torch.ops.mmvim, 'chunked_'
        convolve_backward = conv.bi_conv1d_silu_backward
        batch, length, channels = x.shape
        chunk, readable = chunk_length(batch, length, 2 * channels, states, x.device), _as_it_is
    else:
        return None
    scan = getattr(operators, f'{prefix}bidirectional_selective_scan').default
    scan_backward = getattr(operators, f'{prefix}bidirectional_selective_scan_backward').default
    return _Passes(
        implementation.bi_conv1d_silu,
        convolve_backward,
        partial(fused._call, scan, False),
        scan_backward,
        chunk,
        readable,
    )


def _as_it_is(tensor: Tensor | None) -> Tensor | None:
    return tensor


def _project(xs: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """x_proj of either direction, (B, L, R + 2N), in the dtype of x or in that of autocast."""
    return [F.linear(x, weight.to(x.dtype)) for x, weight in zip(xs, weights)]


def _project_backward(
    grad: Tensor, x: Tensor, weight: Tensor, grad_x: Tensor | None, needs_weight: bool
) -> Tensor | None:
    """One direction's: adds to the gradient of its input, in place; that of its weight."""
    grad, x = grad.flatten(0, 1), x.flatten(0, 1)  # (B L, R + 2N) and (B L, E)
    cast = weight.to(grad.dtype)
    if grad_x is not None and grad_x.dtype == grad.dtype:
        total = grad_x.view(x.shape)
        torch.addmm(total, grad, cast, out=total)  # rounded once, and no tensor for the product
    elif grad_x is not None:
        grad_x += (grad @ cast).view(grad_x.shape)
    return (grad.t() @ x.to(grad.dtype)).to(weight.dtype) if needs_weight else None


def vim_inner(
    implementation: ModuleType,
    x: Tensor,
    z: Tensor,
    convolutions: Sequence[Tensor | None],
    projections: Sequence[Tensor],
    scans: Sequence[Tensor],
    scale: float,
) -> Tensor:
    """See :func:`mmvim_ops.functional.vim_inner`.

    Args:
        implementation: The module whose ops to call.
        x: (B, L, E).
        z: (B, L, E).
        convolutions: w_f, b_f, w_b, b_b.
        projections: x_w_f, x_w_b.
        scans: dt_w_f, dt_w_b, dt_b_f, dt_b_b, A_f, A_b, D_f, D_b.
        scale: Factor of the sum.
    """
    tensors = (x, z, *convolutions, *projections, *scans)
    # A compiler sees the ops one by one, and chooses itself what to compute again.
    if fused._differentiates(*tensors) and not torch.compiler.is_compiling():
        passes = _passes(implementation, x, scans[4].shape[1])
        if passes is not None:
            return _Recomputing.apply(passes, scale, *tensors)
    with full_precision(x.device):
        xs = implementation.bi_conv1d_silu(x, *convolutions)
    dbls = _project(xs, projections)
    with full_precision(x.device):
        out: Tensor = implementation.bidirectional_selective_scan(*xs, *dbls, *scans, z, scale)
    return out


class _Recomputing(torch.autograd.Function):
    """What :func:`vim_inner` computes; its backward pass begins with the convolutions."""

    @staticmethod
    def forward(ctx: Any, passes: _Passes, scale: float, *tensors: Any) -> Tensor:
        x, z, *parameters = tensors
        convolutions, projections, scans = parameters[:4], parameters[4:6], parameters[6:]
        with full_precision(x.device):
            xs = passes.convolve(x, *convolutions)
        dbls = _project(xs, projections)
        with full_precision(x.device):
            inputs = map(passes.readable, (*xs, *dbls, *scans, z))
            out, checkpoints = passes.scan(*inputs, scale, False, passes.chunk)
        ctx.passes, ctx.scale = passes, scale
        ctx.save_for_backward(*tensors, *dbls, checkpoints)
        return out.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        passes: _Passes = ctx.passes
        x, z, *parameters, dbl_f, dbl_b, checkpoints = ctx.saved_tensors
        convolutions, projections, scans = parameters[:4], parameters[4:6], parameters[6:]
        _, _, need_x, need_z, *needs = ctx.needs_input_grad
        need_xs = need_x or any(needs[:4])
        with full_precision(x.device):
            xs = passes.convolve(x, *convolutions)
            *grads, grad_z = passes.gradients(
                passes.scan_backward,
                [grad_out],
                (*xs, dbl_f, dbl_b, *scans, z),
                (checkpoints, ctx.scale, passes.chunk),
                (need_xs, need_xs, need_xs or needs[4], need_xs or needs[5], *needs[6:], need_z),
                torch.are_deterministic_algorithms_enabled(),
            )
            grad_xs, grad_dbls, grad_scans = grads[:2], grads[2:4], grads[4:]
            grad_projections = [
                None if grad is None else _project_backward(grad, *others)
                for grad, *others in zip(grad_dbls, xs, projections, grad_xs, needs[4:6])
            ]
            del xs  # as much memory as the gradient of x and z takes
            grad_x_convolutions: Sequence[Tensor | None] = [None] * 5
            if need_xs:
                grad_x_convolutions = passes.gradients(
                    passes.convolve_backward,
                    grad_xs,
                    (x, *convolutions),
                    (),
                    (need_x, *needs[:4]),
                )
        grad_x, *grad_convolutions = grad_x_convolutions
        return (
            *(None, None, grad_x, grad_z),
            *(*grad_convolutions, *grad_projections, *grad_scans),
        )
