"""Schemas, shape rules and autograd of the ``mmvim::`` operators, in one place.

Each has the pure-torch kernels of :mod:`mmvim_ops.chunked` for every device; a kernel registered
for a device's own dispatch key takes precedence. Beyond the arguments of
:mod:`mmvim_ops.functional`:

* ``B``, ``C`` of ``selective_scan`` are always (B, L, groups, N).
* ``chunk``: tokens between two saved states. ``checkpoints`` holds the state before every chunk, in
  scan order: (ceil(L / chunk), B, groups, N, E / groups); the bidirectional op has two groups of E.
* ``needs``: which input gradients a backward computes; the others come back with no elements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmvim_ops import chunked
from mmvim_ops.precision import wide_dtype

_SELECTIVE = (
    'Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias'
)
_SELECTIVE_OPTIONS = 'bool delta_softplus, bool reverse, SymInt groups, SymInt chunk'
_BIDIRECTIONAL = (
    'Tensor x_f, Tensor x_b, Tensor dbl_f, Tensor dbl_b, Tensor dt_w_f, Tensor dt_w_b, '
    'Tensor dt_b_f, Tensor dt_b_b, Tensor A_f, Tensor A_b, Tensor D_f, Tensor D_b, Tensor z'
)
_BIDIRECTIONAL_OPTIONS = 'float scale, SymInt chunk'


def _results(count: int) -> str:
    return f'({", ".join(["Tensor"] * count)})'


_SCHEMAS = {
    'selective_scan': f'({_SELECTIVE}, {_SELECTIVE_OPTIONS}) -> {_results(3)}',
    'selective_scan_backward': (
        f'(Tensor grad_out, Tensor? grad_last_state, {_SELECTIVE}, Tensor checkpoints, '
        f'{_SELECTIVE_OPTIONS}, bool[] needs) -> {_results(8)}'
    ),
    'bidirectional_selective_scan': (
        f'({_BIDIRECTIONAL}, {_BIDIRECTIONAL_OPTIONS}) -> {_results(2)}'
    ),
    'bidirectional_selective_scan_backward': (
        f'(Tensor grad_out, {_BIDIRECTIONAL}, Tensor checkpoints, '
        f'{_BIDIRECTIONAL_OPTIONS}, bool[] needs) -> {_results(13)}'
    ),
}
_KERNELS: dict[str, Callable[..., object]] = {
    'selective_scan': chunked.selective_forward,
    'selective_scan_backward': chunked.selective_backward,
    'bidirectional_selective_scan': chunked.bidirectional_forward,
    'bidirectional_selective_scan_backward': chunked.bidirectional_backward,
}
for _name, _schema in _SCHEMAS.items():
    _op = f'mmvim::{_name}'
    torch.library.define(_op, _schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(_op, 'default', _KERNELS[_name])


def _checkpoints_like(u: Tensor, A: Tensor, directions: int, groups: int, chunk: int) -> Tensor:
    batch, length, channels = u.shape
    count = (length + chunk - 1) // chunk
    width = directions * channels // groups
    return u.new_empty((count, batch, groups, A.shape[1], width), dtype=wide_dtype(u.dtype))


def _grads_like(inputs: Sequence[Tensor | None], needs: Sequence[bool]) -> tuple[Tensor, ...]:
    lead = inputs[0]
    assert lead is not None  # the first input of every op is required
    return tuple(
        tensor.new_empty(tensor.shape) if need and tensor is not None else lead.new_empty(0)
        for tensor, need in zip(inputs, needs)
    )


@torch.library.register_fake('mmvim::selective_scan')
def _selective_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    u, A, groups, chunk = args[0], args[2], args[10], args[11]
    last_state = u.new_empty((u.shape[0], *A.shape), dtype=wide_dtype(u.dtype))
    return u.new_empty(u.shape), last_state, _checkpoints_like(u, A, 1, groups, chunk)


@torch.library.register_fake('mmvim::selective_scan_backward')
def _selective_backward_fake(*args: Any) -> tuple[Tensor, ...]:
    return _grads_like(args[2:10], args[-1])


@torch.library.register_fake('mmvim::bidirectional_selective_scan')
def _bidirectional_fake(*args: Any) -> tuple[Tensor, Tensor]:
    x, A, chunk = args[0], args[8], args[14]
    return x.new_empty(x.shape), _checkpoints_like(x, A, 2, 2, chunk)


@torch.library.register_fake('mmvim::bidirectional_selective_scan_backward')
def _bidirectional_backward_fake(*args: Any) -> tuple[Tensor, ...]:
    return _grads_like(args[1:14], args[-1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Save all tensor inputs and the checkpoints, which come last in every op."""
    checkpoints = output[-1]
    tensors = [value for value in inputs if value is None or isinstance(value, Tensor)]
    ctx.options = inputs[len(tensors) :]
    ctx.mark_non_differentiable(checkpoints)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, checkpoints)


def _input_grads(ctx: Any, backward_op: Any, *grad_outputs: Tensor | None) -> tuple[Any, ...]:
    """Call the backward op; an output that was not used has no gradient."""
    *tensors, checkpoints = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[: len(tensors)])
    grads = backward_op(*grad_outputs, *tensors, checkpoints, *ctx.options, needs)
    wanted = [grad if need else None for grad, need in zip(grads, needs)]
    return (*wanted, *(None for _ in ctx.options))


def _selective_backward(
    ctx: Any, grad_out: Tensor | None, grad_last_state: Tensor | None, _: Tensor | None
) -> tuple[Any, ...]:
    if grad_out is None:
        grad_out = torch.zeros_like(ctx.saved_tensors[0])
    backward_op = torch.ops.mmvim.selective_scan_backward
    return _input_grads(ctx, backward_op, grad_out, grad_last_state)


def _bidirectional_backward(ctx: Any, grad_out: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    if grad_out is None:  # only the checkpoints were used, which are not differentiable
        return (None,) * len(ctx.needs_input_grad)
    return _input_grads(ctx, torch.ops.mmvim.bidirectional_selective_scan_backward, grad_out)


torch.library.register_autograd(
    'mmvim::selective_scan', _selective_backward, setup_context=_setup_context
)
torch.library.register_autograd(
    'mmvim::bidirectional_selective_scan', _bidirectional_backward, setup_context=_setup_context
)
