"""A Vim block between in_proj and out_proj, for training: the convolutions are computed twice.

Called one after the other, the ops leave autograd with the outputs of both convolutions, (B, L, E)
each: in half precision about 40% of what it keeps. Here they are computed again for the
backward pass, a few multiply-adds a channel. Saved beside the inputs are x_proj's outputs and the
states of the scan.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmvim_ops.backends.backend import project
from mmvim_ops.library import once_differentiable
from mmvim_ops.precision import full_precision
from mmvim_ops.scan_inputs import MixerWeights, interleaved

if TYPE_CHECKING:
    from mmvim_ops.backends.operators import OperatorBackend

__all__ = ['recomputing_inner']


def recomputing_inner(
    backend: OperatorBackend,
    x: Tensor,
    z: Tensor,
    forward: MixerWeights,
    reverse: MixerWeights,
    scale: float,
) -> Tensor:
    """See :meth:`mmvim_ops.backends.backend.Backend.vim_inner`."""
    out: Tensor = _Recomputing.apply(backend, scale, x, z, *forward, *reverse)
    return out


def _unpacked(values: Sequence[Any]) -> tuple[Any, ...]:
    """x, z and the weights of both directions, or what belongs to each of them."""
    x, z, *weights = values
    return x, z, MixerWeights(*weights[:7]), MixerWeights(*weights[7:])


class _Recomputing(torch.autograd.Function):
    """A block whose backward pass begins with the convolutions."""

    @staticmethod
    def forward(ctx: Any, backend: OperatorBackend, scale: float, *tensors: Any) -> Tensor:
        x, z, forward, reverse = _unpacked(tensors)
        with full_precision(x.device):
            x_f, x_b = backend.bi_conv1d_silu(x, *forward[:2], *reverse[:2])
        dbl_f, dbl_b = project(x_f, forward.x_proj), project(x_b, reverse.x_proj)
        scans = forward.scan_inputs(x_f, dbl_f), reverse.scan_inputs(x_b, dbl_b)
        with full_precision(x.device):
            out, checkpoints = backend.scan_both(*scans, z, scale, x.dtype, saves=True)
        ctx.backend, ctx.scale = backend, scale
        ctx.save_for_backward(*tensors, dbl_f, dbl_b, checkpoints)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        backend: OperatorBackend = ctx.backend
        *tensors, dbl_f, dbl_b, checkpoints = ctx.saved_tensors
        x, z, forward, reverse = _unpacked(tensors)
        need_x, need_z, need_f, need_b = _unpacked(ctx.needs_input_grad[2:])
        need_convs = (*need_f[:2], *need_b[:2])
        need_xs = need_x or any(need_convs)
        with full_precision(x.device):
            x_f, x_b = backend.bi_conv1d_silu(x, *forward[:2], *reverse[:2])
            scans = forward.scan_inputs(x_f, dbl_f), reverse.scan_inputs(x_b, dbl_b)
            needs: list[Any] = interleaved(
                *(need.scan_inputs(need_xs, need_xs or need.x_proj) for need in (need_f, need_b))
            )
            *grads, grad_z = backend.gradients(
                backend.family.bidirectional_selective_scan_backward,
                [grad_out],
                (*interleaved(*scans), z),
                (*needs, need_z),
                (checkpoints, ctx.scale, backend.chunk_length(x, forward.A.shape[1], 2, True)),
                [torch.are_deterministic_algorithms_enabled()],
            )
            # Of x, dbl and the parameters of a direction.
            (grad_x_f, grad_dbl_f, *grad_f), (grad_x_b, grad_dbl_b, *grad_b) = (
                grads[::2],
                grads[1::2],
            )
            grad_x_proj_f, grad_x_proj_b = (
                _project_backward(*direction)
                for direction in (
                    (grad_dbl_f, x_f, forward.x_proj, grad_x_f, need_f.x_proj),
                    (grad_dbl_b, x_b, reverse.x_proj, grad_x_b, need_b.x_proj),
                )
            )
            del x_f, x_b, scans  # as much memory as the gradient of x and z takes
            grad_x_convs: Sequence[Tensor | None] = [None] * 5
            if need_xs:
                grad_x_convs = backend.gradients(
                    backend.family.bi_conv1d_silu_backward,
                    [grad_x_f, grad_x_b],
                    (x, *forward[:2], *reverse[:2]),
                    (need_x, *need_convs),
                )
        grad_x, *grad_convs = grad_x_convs
        return (
            *(None, None, grad_x, grad_z),
            *(*grad_convs[:2], grad_x_proj_f, *grad_f),
            *(*grad_convs[2:], grad_x_proj_b, *grad_b),
        )


def _project_backward(
    grad: Tensor | None, x: Tensor, weight: Tensor, grad_x: Tensor | None, needs_weight: bool
) -> Tensor | None:
    """One direction's: adds to the gradient of its input, in place; that of its weight."""
    if grad is None:
        return None
    grad, x = grad.flatten(0, 1), x.flatten(0, 1)  # (B L, R + 2N) and (B L, E)
    cast = weight.to(grad.dtype)
    if grad_x is not None and grad_x.dtype == grad.dtype:
        total = grad_x.view(x.shape)
        torch.addmm(total, grad, cast, out=total)  # rounded once, and no tensor for the product
    elif grad_x is not None:
        grad_x += (grad @ cast).view(grad_x.shape)
    return (grad.t() @ x.to(grad.dtype)).to(weight.dtype) if needs_weight else None
