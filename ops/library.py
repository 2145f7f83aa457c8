"""Schemas, shape rules and autograd of the ``mmvim::`` operators, in one place.

``mmvim::selective_scan`` and its backward have the pure-torch kernels of :mod:`mmvim_ops.chunked`
for every device. A kernel registered for a device's own dispatch key takes precedence over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmvim_ops import chunked
from mmvim_ops.precision import wide_dtype

# B and C are (B, L, groups, N). `checkpoints` is (ceil(L / chunk), B, groups, N, E / groups): the
# state before every chunk, in scan order. `needs` says which of the eight input gradients to compute;
# the others come back empty.
_INPUTS = (
    'Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias'
)
_OPTIONS = 'bool delta_softplus, bool reverse, SymInt groups, SymInt chunk'
_FORWARD = 'mmvim::selective_scan'
_BACKWARD = 'mmvim::selective_scan_backward'

torch.library.define(
    _FORWARD,
    f'({_INPUTS}, {_OPTIONS}) -> (Tensor out, Tensor last_state, Tensor checkpoints)',
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    _BACKWARD,
    f'(Tensor grad_out, Tensor? grad_last_state, {_INPUTS}, Tensor checkpoints, {_OPTIONS}, '
    'bool[] needs) -> (Tensor grad_u, Tensor grad_delta, Tensor grad_A, Tensor grad_B, '
    'Tensor grad_C, Tensor grad_D, Tensor grad_z, Tensor grad_delta_bias)',
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.impl(_FORWARD, 'CompositeExplicitAutograd', chunked.forward_kernel)
torch.library.impl(_BACKWARD, 'CompositeExplicitAutograd', chunked.backward_kernel)


@torch.library.register_fake(_FORWARD)
def _forward_shapes(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
    groups: int,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, channels = u.shape
    states, dtype = A.shape[1], wide_dtype(u.dtype)
    count = (length + chunk - 1) // chunk
    return (
        u.new_empty(u.shape),
        u.new_empty((batch, channels, states), dtype=dtype),
        u.new_empty((count, batch, groups, states, channels // groups), dtype=dtype),
    )


@torch.library.register_fake(_BACKWARD)
def _backward_shapes(
    grad_out: Tensor,
    grad_last_state: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    checkpoints: Tensor,
    delta_softplus: bool,
    reverse: bool,
    groups: int,
    chunk: int,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    return tuple(
        tensor.new_empty(tensor.shape) if need and tensor is not None else u.new_empty(0)
        for tensor, need in zip(inputs, needs)
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.delta_softplus, ctx.reverse, ctx.groups, ctx.chunk = inputs
    checkpoints = output[2]
    ctx.mark_non_differentiable(checkpoints)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, checkpoints)


def _backward(
    ctx: Any, grad_out: Tensor | None, grad_last_state: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: activation checkpointing forbids to unpack them again
    u = saved[0]
    needs = list(ctx.needs_input_grad[:8])
    if grad_out is None:
        grad_out = u.new_zeros(u.shape)
    grads = torch.ops.mmvim.selective_scan_backward(
        grad_out,
        grad_last_state,
        *saved,
        ctx.delta_softplus,
        ctx.reverse,
        ctx.groups,
        ctx.chunk,
        needs,
    )
    options = (None, None, None, None)
    return tuple(grad if need else None for grad, need in zip(grads, needs)) + options


torch.library.register_autograd(_FORWARD, _backward, setup_context=_setup_context)
