"""A backend whose ops are operators of ours: one :class:`~mmvim_ops.library.Family` of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from mmvim_ops.backends.backend import Backend
from mmvim_ops.backends.recomputing import recomputing_inner
from mmvim_ops.library import Family, Operator, differentiates, is_seen_through
from mmvim_ops.scan_inputs import MixerWeights, ScanInputs, SelectiveInputs, interleaved

__all__ = ['OperatorBackend']


class OperatorBackend(Backend):
    """The ops as operators, and what training calls of them.

    Args:
        family (Family): The operators.
    """

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
        out: Tensor = self.family.conv1d_silu(*map(self.readable, (x, weight, bias)), reverse)
        return out.to(x.dtype)

    def bi_conv1d_silu(
        self, x: Tensor, w_f: Tensor, b_f: Tensor | None, w_b: Tensor, b_b: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Backend.bi_conv1d_silu`."""
        x_f, x_b = self.family.bi_conv1d_silu(*map(self.readable, (x, w_f, b_f, w_b, b_b)))
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
        return recomputing_inner(self, x, z, forward, reverse, scale)

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
