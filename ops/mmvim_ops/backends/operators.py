"""A backend whose ops are operators of ours: one :class:`~mmvim_ops.library.Family` of them.

In training, a block's convolutions are computed twice. Called one after the other, the ops leave
autograd with the outputs of both, (B, L, E) each: in half precision about 40% of what it keeps.
Computed again for the backward pass, they take a few multiply-adds a channel. Saved beside the
inputs are x_proj's outputs and the states of the scan.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmvim_ops.backends.backend import Backend, project
from mmvim_ops.differentiation import (
    Operator,
    differentiates,
    is_seen_through,
    once_differentiable,
    refuse,
)
from mmvim_ops.library import PURE_TORCH, Family
from mmvim_ops.precision import full_precision
from mmvim_ops.scan_inputs import MixerWeights, ScanInputs, SelectiveInputs, interleaved

__all__ = ['OperatorBackend']


class OperatorBackend(Backend):
    """The ops as operators, and what training calls of them.

    Args:
        family (Family): The operators.

    Attributes:
        conv_width (int | None): The only width W for which there are convolutions: others run in
            pure torch. Defaults to None: there are for any.
    """

    conv_width: int | None = None

    def __init__(self, family: Family) -> None:
        self.family = family

    @abstractmethod
    def chunk_length(self, x: Tensor, states: int, directions: int, saves: bool) -> int:
        """Tokens between two states that a scan of x (B, L, E) has.

        Args:
            x (Tensor): The scanned input.
            states (int): N.
            directions (int): 1 or 2.
            saves (bool): Whether a backward pass may come, for which they are saved.
        """

    def readable(self, tensor: Tensor | None) -> Tensor | None:
        """A tensor in a dtype that the kernels read."""
        return tensor

    def convolutions(self, weight: Tensor) -> Family:
        """The operators that convolve with a weight (E, W)."""
        return self.family if self.conv_width in (None, weight.shape[1]) else PURE_TORCH

    def selective_scan(
        self, inputs: SelectiveInputs, delta_softplus: bool, reverse: bool, groups: int
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Backend.selective_scan`."""
        u = inputs.u
        chunk = self.chunk_length(u, inputs.A.shape[1], 1, differentiates(*inputs))
        tensors = map(self.readable, inputs)
        out, last_state, _ = self.family.selective_scan(
            *tensors, delta_softplus, reverse, groups, chunk
        )
        return out.to(u.dtype), last_state

    def bidirectional_selective_scan(
        self,
        forward: ScanInputs,
        reverse: ScanInputs,
        z: Tensor | None,
        scale: float,
        out_dtype: torch.dtype,
    ) -> Tensor:
        """See :meth:`Backend.bidirectional_selective_scan`."""
        saves = differentiates(*forward, *reverse, z)
        return self.scan_both(forward, reverse, z, scale, out_dtype, saves)[0]

    def scan_both(
        self,
        forward: ScanInputs,
        reverse: ScanInputs,
        z: Tensor | None,
        scale: float,
        out_dtype: torch.dtype,
        saves: bool,
    ) -> tuple[Tensor, Tensor]:
        """The scan of both directions, and the states it saves for a backward pass."""
        x = forward.x
        out, checkpoints = self.family.bidirectional_selective_scan(
            *map(self.readable, (*interleaved(forward, reverse), z)),
            scale,
            out_dtype != x.dtype,
            self.chunk_length(x, forward.A.shape[1], 2, saves),
        )
        return out.to(out_dtype), checkpoints

    def conv1d_silu(self, x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool) -> Tensor:
        """See :meth:`Backend.conv1d_silu`."""
        tensors = map(self.readable, (x, weight, bias))
        out: Tensor = self.convolutions(weight).conv1d_silu(*tensors, reverse)
        return out.to(x.dtype)

    def bi_conv1d_silu(
        self, x: Tensor, w_f: Tensor, b_f: Tensor | None, w_b: Tensor, b_b: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Backend.bi_conv1d_silu`."""
        tensors = map(self.readable, (x, w_f, b_f, w_b, b_b))
        x_f, x_b = self.convolutions(w_f).bi_conv1d_silu(*tensors)
        return x_f.to(x.dtype), x_b.to(x.dtype)

    def add_rms_norm(
        self, x: Tensor, added: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Backend.add_rms_norm`."""
        tensors = map(self.readable, (x, added, weight))
        normed, total, _ = self.family.add_rms_norm(*tensors, float(eps))
        return normed.to(weight.dtype), total.to(x.dtype)

    def vim_inner(
        self, x: Tensor, z: Tensor, forward: MixerWeights, reverse: MixerWeights, scale: float
    ) -> Tensor:
        """See :meth:`Backend.vim_inner`; training computes the convolutions twice."""
        # A compiler sees the ops one by one, and chooses itself what to compute again.
        if is_seen_through() or not differentiates(x, z, *forward, *reverse):
            return super().vim_inner(x, z, forward, reverse, scale)
        out: Tensor = _Recomputing.apply(self, scale, x, z, *forward, *reverse)
        return out

    def gradients(
        self,
        operator: Operator,
        grad_outputs: Sequence[Tensor | None],
        inputs: Sequence[Tensor | None],
        needs: Sequence[bool],
        saved: Sequence[object] = (),
        options: Sequence[object] = (),
    ) -> list[Tensor | None]:
        """Call the operator of a backward pass.

        Args:
            operator (Operator): Takes gradients, inputs, ``saved``, ``needs`` and ``options``.
            grad_outputs (Sequence[Tensor | None]): Gradients of the outputs.
            inputs (Sequence[Tensor | None]): What the forward pass read.
            needs (Sequence[bool]): Which of them need a gradient.
            saved (Sequence[object]): What else the forward pass left, and its options.
            options (Sequence[object]): Those of the backward pass alone.

        Returns:
            A gradient in the dtype of its input, or None, for each input.
        """
        tensors = map(self.readable, (*grad_outputs, *inputs))
        grads = operator(*tensors, *saved, list(needs), *options)
        return [
            grad.to(given.dtype) if need and given is not None else None
            for grad, given, need in zip(grads, inputs, needs)
        ]


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

    jvp = staticmethod(refuse)

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
                    backend.convolutions(forward.conv_weight).bi_conv1d_silu_backward,
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
