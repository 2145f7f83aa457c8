"""Schemas, shape rules and autograd of the ``mmvim::`` operators, in one place.

The scans come twice. Those named ``chunked_*`` are :mod:`mmvim_ops.backends.chunked` on every
device. The others, the convolutions and the normalisation, are the compiled kernels that
:mod:`mmvim_ops.loading` loads, on devices that have some, and pure torch elsewhere, so that a graph
exported with them runs anywhere. Beyond the arguments of :mod:`mmvim_ops.functional`:

* ``B``, ``C`` of ``selective_scan`` are always (B, L, groups, N).
* ``z``: absent, there is no gate.
* ``wide_out``: the bidirectional scan returns its sums as it has them, in float32 (in float64 for
  float64 inputs), whatever the dtype of its inputs; its backward pass takes a ``grad_out`` of
  either dtype.
* ``chunk``: tokens between two saved states. ``checkpoints`` holds the state before every chunk, in
  scan order: (ceil(L / chunk), B, groups, N, E / groups); the bidirectional op has two groups of E.
* ``needs``: which input gradients a backward computes; the others come back with no elements.
* ``deterministic``: sum the gradients in an order that does not change from run to run. Only CUDA
  kernels know another one.

Autocast changes nothing: an operator computes in float32 whatever the dtype of its inputs, which
are those the linear layers around it left, and keeps parameters, step and state out of half
precision (see :func:`mmvim_ops.precision.full_precision`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmvim_ops import conv, norm
from mmvim_ops.backends import chunked
from mmvim_ops.precision import wide_dtype

_SELECTIVE = (
    'Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias'
)
_SELECTIVE_OPTIONS = 'bool delta_softplus, bool reverse, SymInt groups, SymInt chunk'
_BIDIRECTIONAL = (
    'Tensor x_f, Tensor x_b, Tensor dbl_f, Tensor dbl_b, Tensor dt_w_f, Tensor dt_w_b, '
    'Tensor dt_b_f, Tensor dt_b_b, Tensor A_f, Tensor A_b, Tensor D_f, Tensor D_b, Tensor? z'
)
_CONV = 'Tensor x, Tensor weight, Tensor? bias'
_BI_CONV = 'Tensor x, Tensor w_f, Tensor? b_f, Tensor w_b, Tensor? b_b'


def _results(count: int) -> str:
    return f'({", ".join(["Tensor"] * count)})' if count > 1 else 'Tensor'


_SCHEMAS = {
    'selective_scan': f'({_SELECTIVE}, {_SELECTIVE_OPTIONS}) -> {_results(3)}',
    'selective_scan_backward': (
        f'(Tensor grad_out, Tensor? grad_last_state, {_SELECTIVE}, Tensor checkpoints, '
        f'{_SELECTIVE_OPTIONS}, bool[] needs, bool deterministic) -> {_results(8)}'
    ),
    'bidirectional_selective_scan': (
        f'({_BIDIRECTIONAL}, float scale, bool wide_out, SymInt chunk) -> {_results(2)}'
    ),
    'bidirectional_selective_scan_backward': (
        f'(Tensor grad_out, {_BIDIRECTIONAL}, Tensor checkpoints, '
        f'float scale, SymInt chunk, bool[] needs, bool deterministic) -> {_results(13)}'
    ),
    'conv1d_silu': f'({_CONV}, bool reverse) -> Tensor',
    'conv1d_silu_backward': (
        f'(Tensor grad_out, {_CONV}, bool reverse, bool[] needs) -> {_results(3)}'
    ),
    'add_rms_norm': f'(Tensor x, Tensor added, Tensor weight, float eps) -> {_results(3)}',
    'add_rms_norm_backward': (
        '(Tensor grad_normed, Tensor? grad_total, Tensor total, Tensor scales, Tensor weight) '
        f'-> {_results(2)}'
    ),
    'bi_conv1d_silu': f'({_BI_CONV}) -> {_results(2)}',
    'bi_conv1d_silu_backward': (
        f'(Tensor grad_f, Tensor grad_b, {_BI_CONV}, bool[] needs) -> {_results(5)}'
    ),
}


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


def _selective_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    u, A, groups, chunk = args[0], args[2], args[10], args[11]
    last_state = u.new_empty((u.shape[0], *A.shape), dtype=wide_dtype(u.dtype))
    return u.new_empty(u.shape), last_state, _checkpoints_like(u, A, 1, groups, chunk)


def _selective_backward_fake(*args: Any) -> tuple[Tensor, ...]:
    return _grads_like(args[2:10], args[-2])


def _bidirectional_fake(*args: Any) -> tuple[Tensor, Tensor]:
    x, A, wide_out, chunk = args[0], args[8], args[14], args[15]
    out = x.new_empty(x.shape, dtype=wide_dtype(x.dtype) if wide_out else x.dtype)
    return out, _checkpoints_like(x, A, 2, 2, chunk)


def _bidirectional_backward_fake(*args: Any) -> tuple[Tensor, ...]:
    return _grads_like(args[1:14], args[-2])


def _conv_fake(*args: Any) -> Tensor:
    out: Tensor = args[0].new_empty(args[0].shape)
    return out


def _conv_backward_fake(*args: Any) -> tuple[Tensor, ...]:
    return _grads_like(args[1:4], args[-1])


def _bi_conv_fake(*args: Any) -> tuple[Tensor, Tensor]:
    x = args[0]
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _bi_conv_backward_fake(*args: Any) -> tuple[Tensor, ...]:
    return _grads_like(args[2:7], args[-1])


def _norm_fake(x: Tensor, added: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, ...]:
    normed = x.new_empty(x.shape, dtype=weight.dtype)
    scales = x.new_empty(x.shape[:-1], dtype=wide_dtype(x.dtype))
    return normed, x.new_empty(x.shape), scales


def _norm_backward_fake(
    grad_normed: Tensor, grad_total: Tensor | None, total: Tensor, scales: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    return total.new_empty(total.shape), weight.new_empty(weight.shape)


def _setup_scan(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Save all tensor inputs and the checkpoints, which come last in every scan."""
    checkpoints = output[-1]
    tensors = [value for value in inputs if value is None or isinstance(value, Tensor)]
    ctx.options = inputs[len(tensors) :]
    ctx.mark_non_differentiable(checkpoints)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, checkpoints)


def _setup_bidirectional(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _setup_scan(ctx, inputs, output)
    scale, _, chunk = ctx.options  # how wide the output was shows in its gradient
    ctx.options = (scale, chunk)


def _setup_conv(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    tensors = [value for value in inputs if value is None or isinstance(value, Tensor)]
    ctx.options = inputs[len(tensors) :]
    ctx.save_for_backward(*tensors)


def _setup_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, added, weight, _ = inputs
    _, total, scales = output
    ctx.added_dtype = added.dtype
    ctx.mark_non_differentiable(scales)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(total, scales, weight)


def _input_grads(
    ctx: Any, backward_op: Any, grad_outputs: Sequence[Tensor | None], inputs: int, *options: bool
) -> tuple[Any, ...]:
    """Call the backward op on whatever was saved; its first ``inputs`` tensors were inputs."""
    needs = list(ctx.needs_input_grad[:inputs])
    grads = backward_op(*grad_outputs, *ctx.saved_tensors, *ctx.options, needs, *options)
    wanted = [grad if need else None for grad, need in zip(grads, needs)]
    return (*wanted, *(None for _ in ctx.options))


def _selective_rule(backward_op: Any) -> Callable[..., Any]:
    def backward(
        ctx: Any, grad_out: Tensor | None, grad_last_state: Tensor | None, _: Tensor | None
    ) -> tuple[Any, ...]:
        if grad_out is None:  # an output that was not used has no gradient
            grad_out = torch.zeros_like(ctx.saved_tensors[0])
        deterministic = torch.are_deterministic_algorithms_enabled()
        return _input_grads(ctx, backward_op, (grad_out, grad_last_state), 8, deterministic)

    return backward


def _bidirectional_rule(backward_op: Any) -> Callable[..., Any]:
    def backward(ctx: Any, grad_out: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
        if grad_out is None:  # only the checkpoints were used, which are not differentiable
            return (None,) * len(ctx.needs_input_grad)
        deterministic = torch.are_deterministic_algorithms_enabled()
        grads = _input_grads(ctx, backward_op, (grad_out,), 13, deterministic)
        return (*grads, None)  # of `wide_out`, which is no option of the backward op

    return backward


def _conv_rule(backward_op: Any) -> Callable[..., Any]:
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
        return _input_grads(ctx, backward_op, (grad_out,), 3)

    return backward


def _bi_conv_rule(backward_op: Any) -> Callable[..., Any]:
    def backward(ctx: Any, grad_f: Tensor, grad_b: Tensor) -> tuple[Any, ...]:
        return _input_grads(ctx, backward_op, (grad_f, grad_b), 5)

    return backward


def _norm_rule(backward_op: Any) -> Callable[..., Any]:
    def backward(
        ctx: Any, grad_normed: Tensor | None, grad_total: Tensor | None, _: Tensor | None
    ) -> tuple[Any, ...]:
        total, scales, weight = ctx.saved_tensors
        if grad_normed is None:
            grad_normed = torch.zeros_like(total)
        grad, grad_weight = backward_op(grad_normed, grad_total, total, scales, weight)
        return grad, grad.to(ctx.added_dtype), grad_weight, None

    return backward


class _Operator(NamedTuple):
    """An operator and its backward: pure-torch kernels, shape rules, and autograd."""

    kernels: tuple[Callable[..., object], Callable[..., object]]
    fakes: tuple[Callable[..., object], Callable[..., object]]
    setup: Callable[..., None]
    rule: Callable[[Any], Callable[..., Any]]


_OPERATORS = {
    'selective_scan': _Operator(
        (chunked.selective_forward, chunked.selective_backward),
        (_selective_fake, _selective_backward_fake),
        _setup_scan,
        _selective_rule,
    ),
    'bidirectional_selective_scan': _Operator(
        (chunked.bidirectional_forward, chunked.bidirectional_backward),
        (_bidirectional_fake, _bidirectional_backward_fake),
        _setup_bidirectional,
        _bidirectional_rule,
    ),
    'conv1d_silu': _Operator(
        (conv.conv1d_silu, conv.conv1d_silu_backward),
        (_conv_fake, _conv_backward_fake),
        _setup_conv,
        _conv_rule,
    ),
    'bi_conv1d_silu': _Operator(
        (conv.bi_conv1d_silu, conv.bi_conv1d_silu_backward),
        (_bi_conv_fake, _bi_conv_backward_fake),
        _setup_conv,
        _bi_conv_rule,
    ),
    'add_rms_norm': _Operator(
        (norm.add_rms_norm_forward, norm.add_rms_norm_backward),
        (_norm_fake, _norm_backward_fake),
        _setup_norm,
        _norm_rule,
    ),
}


def register(namespace: str, prefix: str = '') -> None:
    """Declare the operators of a namespace, with kernels in pure torch, shape rules and autograd.

    Args:
        namespace: As in ``mmvim::selective_scan``. Kernels of a device that are registered in it
            take the place of those in pure torch.
        prefix: Goes before the names, of the scans alone if it is given. Defaults to ''.
    """
    for name, operator in _OPERATORS.items():
        if prefix and not name.endswith('scan'):
            continue
        forward = f'{namespace}::{prefix}{name}'
        for op, schema, kernel, fake in zip(
            (forward, f'{forward}_backward'),
            (_SCHEMAS[name], _SCHEMAS[f'{name}_backward']),
            operator.kernels,
            operator.fakes,
        ):
            torch.library.define(op, schema, tags=(torch.Tag.pt2_compliant_tag,))
            torch.library.impl(op, 'default', kernel)
            torch.library.register_fake(op, fake)
        backward_op = getattr(getattr(torch.ops, namespace), f'{prefix}{name}_backward')
        torch.library.register_autograd(
            forward, operator.rule(backward_op), setup_context=operator.setup
        )


register('mmvim')
register('mmvim', 'chunked_')
