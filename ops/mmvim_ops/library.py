"""Schemas, shape rules and derivatives of the ``mmvim::`` operators, in one place.

They come in two families. Those named ``chunked_*`` are :mod:`mmvim_ops.pure_torch` on every
device. The others are the compiled kernels that :mod:`mmvim_ops.loading` loads, on devices that
have some, and pure torch elsewhere, so that a graph exported with them runs anywhere. Beyond the
arguments of :mod:`mmvim_ops.functional`:

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

All results are contiguous, whatever the strides of the inputs: a shape rule promises it to the
compiler.

Autocast changes nothing: an operator computes in float32 whatever the dtype of its inputs, which
are those the linear layers around it left, and keeps parameters, step and state out of half
precision (see :func:`mmvim_ops.precision.full_precision`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmvim_ops.differentiation import Operator, Rule, Setup, refuse
from mmvim_ops.precision import wide_dtype
from mmvim_ops.pure_torch import conv, norm, scans

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

_BLOCK = ', '.join(
    (
        'Tensor x, Tensor norm, Tensor in_proj, Tensor? in_bias',
        *(
            f'Tensor conv_weight_{d}, Tensor? conv_bias_{d}, Tensor x_proj_{d}, '
            f'Tensor dt_weight_{d}, Tensor dt_bias_{d}, Tensor A_{d}, Tensor D_{d}'
            for d in 'fb'
        ),
        'Tensor out_proj, Tensor? out_bias, Tensor? gamma',
    )
)


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
    'bi_conv1d_silu': f'({_BI_CONV}) -> {_results(2)}',
    'bi_conv1d_silu_backward': (
        f'(Tensor grad_f, Tensor grad_b, {_BI_CONV}, bool[] needs) -> {_results(5)}'
    ),
    'add_rms_norm': f'(Tensor x, Tensor added, Tensor weight, float eps) -> {_results(3)}',
    'add_rms_norm_backward': (
        '(Tensor grad_normed, Tensor? grad_total, Tensor total, Tensor scales, Tensor weight) '
        f'-> {_results(2)}'
    ),
}


# --- shape rules ---


def _checkpoints_like(u: Tensor, A: Tensor, directions: int, groups: int, chunk: int) -> Tensor:
    batch, length, channels = u.shape
    count = (length + chunk - 1) // chunk
    if isinstance(count, torch.SymInt) and torch.compiler.is_exporting():
        # Nobody reads them in an exported graph, which serves one chunk and several alike.
        count = torch.library.get_ctx().new_dynamic_size()
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


def _bidirectional_fake(*args: Any) -> tuple[Tensor, Tensor]:
    x, A, wide_out, chunk = args[0], args[8], args[14], args[15]
    out = x.new_empty(x.shape, dtype=wide_dtype(x.dtype) if wide_out else x.dtype)
    return out, _checkpoints_like(x, A, 2, 2, chunk)


def _conv_fake(*args: Any) -> Tensor:
    out: Tensor = args[0].new_empty(args[0].shape)
    return out


def _bi_conv_fake(*args: Any) -> tuple[Tensor, Tensor]:
    return _conv_fake(*args), _conv_fake(*args)


def _norm_fake(x: Tensor, added: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, ...]:
    normed = x.new_empty(x.shape, dtype=weight.dtype)
    scales = x.new_empty(x.shape[:-1], dtype=wide_dtype(x.dtype))
    return normed, x.new_empty(x.shape), scales


def _norm_backward_fake(*args: Any) -> tuple[Tensor, Tensor]:
    total, _, weight = args[2:]
    return total.new_empty(total.shape), weight.new_empty(weight.shape)


# --- derivatives: what a forward pass saves, and what calls the operator of its backward pass ---


def _save(ctx: Any, inputs: tuple[Any, ...], *outputs: Tensor) -> None:
    """Save all tensor inputs and some outputs; the other inputs are options."""
    tensors = [value for value in inputs if value is None or isinstance(value, Tensor)]
    ctx.options = inputs[len(tensors) :]
    ctx.save_for_backward(*tensors, *outputs)


def _setup_scan(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    checkpoints = output[-1]
    ctx.mark_non_differentiable(checkpoints)
    ctx.set_materialize_grads(False)
    _save(ctx, inputs, checkpoints)


def _setup_bidirectional(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _setup_scan(ctx, inputs, output)
    scale, _, chunk = ctx.options  # how wide the output was shows in its gradient
    ctx.options = (scale, chunk)


def _setup_conv(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    _save(ctx, inputs)


def _setup_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, added, weight, _ = inputs
    _, total, scales = output
    ctx.added_dtype = added.dtype
    ctx.mark_non_differentiable(scales)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(total, scales, weight)


def _norm_rule(backward_op: Operator) -> Rule:
    def backward(
        ctx: Any, grad_normed: Tensor | None, grad_total: Tensor | None, _: Tensor | None
    ) -> tuple[Any, ...]:
        total, scales, weight = ctx.saved_tensors
        if grad_normed is None:
            grad_normed = torch.zeros_like(total)
        grad, grad_weight = backward_op(grad_normed, grad_total, total, scales, weight)
        return grad, grad.to(ctx.added_dtype), grad_weight, None

    return backward


def _setup_nothing(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    pass


# --- operators ---


class _Definition(NamedTuple):
    """An op and its backward: pure-torch kernels, shape rules, and the derivative."""

    kernels: tuple[Callable[..., object], Callable[..., object]]
    fakes: tuple[Callable[..., object], Callable[..., object]]
    setup: Setup
    rule: Callable[[Operator], Rule]


def _definition(
    kernels: tuple[Callable[..., object], Callable[..., object]],
    fake: Callable[..., object],
    setup: Setup,
    grads: int,
    inputs: int,
    sums: bool = False,
) -> _Definition:
    """An op whose backward computes the gradients that are needed of its first inputs.

    Args:
        kernels (tuple[Callable, Callable]): Those of both passes.
        fake (Callable): The shape rule.
        setup (Setup): Saves the inputs, among others.
        grads (int): Outputs that have gradients.
        inputs (int): Tensors among the inputs.
        sums (bool): The backward pass asks how to sum up (``deterministic``). Defaults to False.
    """

    def backward_fake(*args: Any) -> tuple[Tensor, ...]:
        return _grads_like(args[grads : grads + inputs], args[-2 if sums else -1])

    def rule(backward_op: Operator) -> Rule:
        def derivative(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Any, ...]:
            first, *others = grad_outputs[:grads]
            needs = list(ctx.needs_input_grad[:inputs])
            if first is None:  # an output that was not used has no gradient
                first = torch.zeros_like(ctx.saved_tensors[0])
            last = [torch.are_deterministic_algorithms_enabled()] if sums else []
            found = backward_op(first, *others, *ctx.saved_tensors, *ctx.options, needs, *last)
            wanted = [grad if need else None for grad, need in zip(found, needs)]
            return (*wanted, *(None for _ in ctx.needs_input_grad[inputs:]))

        return derivative

    return _Definition(kernels, (fake, backward_fake), setup, rule)


_DEFINITIONS = {
    'selective_scan': _definition(
        (scans.selective_forward, scans.selective_backward),
        _selective_fake,
        _setup_scan,
        2,
        8,
        True,
    ),
    'bidirectional_selective_scan': _definition(
        (scans.bidirectional_forward, scans.bidirectional_backward),
        _bidirectional_fake,
        _setup_bidirectional,
        grads=1,
        inputs=13,
        sums=True,
    ),
    'conv1d_silu': _definition(
        (conv.conv1d_silu, conv.conv1d_silu_backward), _conv_fake, _setup_conv, 1, 3
    ),
    'bi_conv1d_silu': _definition(
        (conv.bi_conv1d_silu, conv.bi_conv1d_silu_backward), _bi_conv_fake, _setup_conv, 2, 5
    ),
    'add_rms_norm': _Definition(
        (norm.add_rms_norm, norm.add_rms_norm_backward),
        (_norm_fake, _norm_backward_fake),
        _setup_norm,
        _norm_rule,
    ),
}


class Family(NamedTuple):
    """All operators of a namespace that one backend calls."""

    selective_scan: Operator
    selective_scan_backward: Operator
    bidirectional_selective_scan: Operator
    bidirectional_selective_scan_backward: Operator
    conv1d_silu: Operator
    conv1d_silu_backward: Operator
    bi_conv1d_silu: Operator
    bi_conv1d_silu_backward: Operator
    add_rms_norm: Operator
    add_rms_norm_backward: Operator


def _in_promised_strides(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel whose results have the very strides that shape rules promise.

    ``Tensor.contiguous`` would not do: it keeps any stride of a dimension of size 1.
    """

    def laid_out(result: Tensor) -> Tensor:
        promised = torch.empty(result.shape, device='meta').stride()
        return (
            result if result.stride() == promised else result.new_empty(result.shape).copy_(result)
        )

    @functools.wraps(kernel)
    def run(*args: Any) -> Any:
        results = kernel(*args)
        return laid_out(results) if isinstance(results, Tensor) else tuple(map(laid_out, results))

    return run


# Namespace and prefix of every family.
FAMILIES: list[tuple[str, str]] = []


def register(namespace: str, prefix: str = '') -> Family:
    """Declare a family of operators, with kernels in pure torch, shape rules and derivatives.

    Args:
        namespace (str): As in ``mmvim::selective_scan``. Kernels of a device that are registered
            in it take the place of those in pure torch.
        prefix (str): Goes before the names. Defaults to ''.
    """
    FAMILIES.append((namespace, prefix))
    operators: dict[str, Operator] = {}
    for name, definition in _DEFINITIONS.items():
        overloads = []
        for suffix, kernel, fake in zip(('', '_backward'), definition.kernels, definition.fakes):
            op = f'{namespace}::{prefix}{name}{suffix}'
            torch.library.define(op, _SCHEMAS[name + suffix], tags=(torch.Tag.pt2_compliant_tag,))
            torch.library.impl(op, 'default', _in_promised_strides(kernel))
            torch.library.register_fake(op, fake)
            overloads.append(getattr(getattr(torch.ops, namespace), op.split('::')[1]).default)
        forward, backward = overloads
        backward_op = Operator(backward, _setup_nothing, refuse)
        rule = definition.rule(backward_op)
        operators[name] = Operator(forward, definition.setup, rule)
        operators[f'{name}_backward'] = backward_op
    return Family(**operators)


COMPILED = register('mmvim')
PURE_TORCH = register('mmvim', 'chunked_')


def _register_block() -> Callable[..., Tensor]:
    """Declare ``mmvim::vim_block``, a whole block for calls that :func:`is_plain_call` says are.

    It has the kernels of the compiled library and no others, and no derivative.
    """
    schema = f'({_BLOCK}, float eps, float scale) -> Tensor'
    torch.library.define('mmvim::vim_block', schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake('mmvim::vim_block', _conv_fake)
    overload: Callable[..., Tensor] = torch.ops.mmvim.vim_block.default

    def call(*args: Any) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return overload(*args)

    return call


VIM_BLOCK = _register_block()
