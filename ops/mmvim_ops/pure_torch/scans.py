"""The kernels of both scans in pure torch: how their inputs and outputs meet the chunked scan.

The scan itself is :mod:`mmvim_ops.pure_torch.chunk_scan`; the operators are declared in
:mod:`mmvim_ops.library`, which has their arguments.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmvim_ops.precision import full_precision, wide, wide_dtype
from mmvim_ops.pure_torch.chunk_scan import Needs, Scan, TokenOrder, Tokens
from mmvim_ops.scan_inputs import ScanInputs, SelectiveInputs, directions

__all__ = [
    'bidirectional_backward',
    'bidirectional_forward',
    'selective_backward',
    'selective_forward',
]


def _empty_grad(tensor: Tensor | None, need: bool, lead: Tensor) -> Tensor:
    """Room for the gradient of an input, contiguous; empty where it is not needed."""
    if tensor is None or not need:
        return lead.new_empty(0)
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


class _Selective:
    """Chunks of the inputs of the generic scan: one direction, any number of groups."""

    def __init__(self, inputs: SelectiveInputs, reverse: bool, groups: int) -> None:
        self.inputs, self.groups = inputs, groups
        self.order = TokenOrder(inputs.u.shape[1], reverse, wide_dtype(inputs.u.dtype))

    def load(self, tokens: slice) -> Tokens:
        """The inputs of a chunk."""
        u, delta, _, B, C, *_ = self.inputs
        return Tokens(*(self.read(tensor, tokens) for tensor in (u, delta, B, C)))

    def read(self, tensor: Tensor, tokens: slice) -> Tensor:
        """(B, L, E) or (B, L, G, N) -> (T, B, G, 1, E / G or N), contiguous."""
        part = self.order.read(tensor, tokens)
        width = part.shape[-1] if part.dim() == 4 else part.shape[-1] // self.groups
        return part.contiguous().view(*part.shape[:2], self.groups, 1, width)

    def write(self, tensor: Tensor, tokens: slice, value: Tensor) -> None:
        """The way back, into ``tensor``."""
        self.order.write(tensor, tokens, value.reshape(*value.shape[:2], *tensor.shape[2:]))

    def scan(self, softplus: bool, chunk: int) -> Scan:
        """The scan itself: E channels become groups x E / groups."""
        u, _, A, _, _, D, _, bias = self.inputs
        by_group = A.reshape(self.groups, -1, A.shape[1])
        D = None if D is None else D.reshape(self.groups, -1)
        bias = None if bias is None else bias.reshape(self.groups, -1)
        return Scan(u.shape[0], u.shape[1], by_group, D, bias, softplus, chunk)


def selective_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel of ``selective_scan``."""
    inputs, (softplus, reverse, groups, chunk) = SelectiveInputs(*args[:8]), args[8:]
    u, z = inputs.u, inputs.z
    out = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    source = _Selective(inputs, reverse, groups)

    def store(tokens: slice, y: Tensor) -> None:
        if z is not None:
            y = y.mul_(F.silu(source.read(z, tokens)))
        source.write(out, tokens, y)

    with full_precision(u.device):
        last_state, checkpoints = source.scan(softplus, chunk).forward(source.load, store)
    return out, last_state, checkpoints


def selective_backward(*args: Any) -> tuple[Tensor, ...]:
    """The kernel of ``selective_scan_backward``."""
    grad_out, grad_last_state, *tensors = args[:10]
    inputs, checkpoints, (softplus, reverse, groups, chunk) = (
        SelectiveInputs(*tensors),
        args[10],
        args[11:15],
    )
    needs: Any = args[15]
    need: Any = SelectiveInputs(*needs)
    z = inputs.z
    grads = [_empty_grad(tensor, wanted, inputs.u) for tensor, wanted in zip(inputs, needs)]
    source = _Selective(inputs, reverse, groups)

    def load_grad(tokens: slice) -> Tensor:
        grad = source.read(grad_out, tokens)
        if z is not None:
            grad = grad * F.silu(source.read(z, tokens))
        return grad

    def store(tokens: slice, grad: Tokens, y: Tensor | None) -> None:
        for index, value in zip((0, 1, 3, 4), grad):
            if needs[index]:
                source.write(grads[index], tokens, value)
        if y is not None and z is not None:
            grad_gated = source.read(grad_out, tokens) * y
            gate = source.read(z, tokens)
            source.write(grads[6], tokens, torch.ops.aten.silu_backward(grad_gated, gate))

    with full_precision(inputs.u.device):
        wanted = Needs(
            u=need.u,
            delta=need.delta or need.delta_bias,
            A=need.A,
            B=need.B,
            C=need.C,
            D=need.D,
            bias=need.delta_bias,
            y=need.z,
        )
        grad_A, grad_D, grad_bias = source.scan(softplus, chunk).backward(
            source.load, load_grad, store, checkpoints, grad_last_state, wanted
        )
    for index, value in ((2, grad_A), (5, grad_D), (7, grad_bias)):
        if needs[index]:
            grads[index].copy_(value.reshape(grads[index].shape))
    return tuple(grads)


class _Bidirectional:
    """Chunks of the inputs of the bidirectional scan: two groups, the second scanned in reverse."""

    def __init__(self, forward: ScanInputs, reverse: ScanInputs) -> None:
        self.directions = forward, reverse
        length, dtype = forward.x.shape[1], wide_dtype(forward.x.dtype)
        self.orders = (TokenOrder(length, False, dtype), TokenOrder(length, True, dtype))
        self.dt_weights = [wide(given.dt_weight) for given in self.directions]
        states = forward.A.shape[1]
        self.sizes = (forward.dt_weight.shape[1], states, states)

    def load(self, tokens: slice) -> Tokens:
        """The inputs of a chunk, dt_proj applied."""
        dts, Bs, Cs = zip(*(dbl.split(self.sizes, dim=-1) for dbl in self.read('dbl', tokens)))
        deltas = [_project(dt, weight.t()) for dt, weight in zip(dts, self.dt_weights)]
        us = self.read('x', tokens)
        return Tokens(*(torch.stack(pair, dim=2).unsqueeze(3) for pair in (us, deltas, Bs, Cs)))

    def read(self, name: str, tokens: slice) -> list[Tensor]:
        """One (B, L, ...) input a direction -> one (T, B, ...) chunk a direction."""
        return [
            order.read(getattr(given, name), tokens)
            for order, given in zip(self.orders, self.directions)
        ]

    def scan(self, chunk: int) -> Scan:
        """The scan itself: one group a direction."""
        batch, length, _ = self.directions[0].x.shape
        A, D, bias = (
            torch.stack([wide(getattr(given, name)) for given in self.directions])
            for name in ('A', 'D', 'dt_bias')
        )
        return Scan(batch, length, A, D, bias, True, chunk)


def _project(rows: Tensor, weight: Tensor) -> Tensor:
    """``rows @ weight`` of (T, B, .) rows, with the same bits whether a gradient follows or not.

    torch.matmul would take a product of all rows or one for each token, depending on that.
    """
    return (rows.flatten(0, 1) @ weight).unflatten(0, rows.shape[:2])


def bidirectional_forward(*args: Any) -> tuple[Tensor, Tensor]:
    """The kernel of ``bidirectional_selective_scan``."""
    forward, reverse = directions(args[:12])
    z, scale, wide_out, chunk = args[12:]
    x = forward.x
    source = _Bidirectional(forward, reverse)
    both = torch.zeros(x.shape, dtype=wide_dtype(x.dtype), device=x.device)

    def store(tokens: slice, y: Tensor) -> None:
        for order, y_d in zip(source.orders, y.squeeze(3).unbind(2)):
            order.write(both, tokens, y_d, add=True)

    with full_precision(x.device):
        _, checkpoints = source.scan(chunk).forward(source.load, store)
        if z is not None:
            both.mul_(F.silu(wide(z)))
        both.mul_(scale)
    return both if wide_out else both.to(x.dtype), checkpoints


def bidirectional_backward(*args: Any) -> tuple[Tensor, ...]:
    """The kernel of ``bidirectional_selective_scan_backward``."""
    grad_out, inputs, z, (checkpoints, scale, chunk) = args[0], args[1:14], args[13], args[14:17]
    needs: Any = args[17]
    forward, reverse = directions(args[1:13])
    x = forward.x
    either: list[Any] = [any(needs[first : first + 2]) for first in range(0, 12, 2)]
    need: Any = ScanInputs(*either)
    need_z = needs[12] and z is not None
    grads = [_empty_grad(tensor, wanted, x) for tensor, wanted in zip(inputs, needs)]
    source = _Bidirectional(forward, reverse)

    def load_grad(tokens: slice) -> Tensor:
        parts = [order.read(grad_both, tokens) for order in source.orders]
        return torch.stack(parts, dim=2).unsqueeze(3)

    def store(tokens: slice, grad: Tokens, y: Tensor | None) -> None:
        parts = zip(*(part.squeeze(3).unbind(2) for part in grad))
        dbls = source.read('dbl', tokens)
        for d, (order, (grad_u, grad_delta, grad_B, grad_C)) in enumerate(
            zip(source.orders, parts)
        ):
            if needs[d]:
                order.write(grads[d], tokens, grad_u)
            if needs[2 + d]:
                grad_dt = _project(grad_delta, source.dt_weights[d])
                grad_dbl = torch.cat((grad_dt, grad_B, grad_C), dim=-1)
                order.write(grads[2 + d], tokens, grad_dbl)
            if needs[4 + d]:
                dt = dbls[d][..., : source.sizes[0]]
                grad_weights[d] += grad_delta.flatten(0, 1).t() @ dt.flatten(0, 1)
            if y is not None:
                order.write(both, tokens, y[:, :, d, 0], add=True)

    with full_precision(x.device):
        gate = None if z is None else wide(z)
        grad_both = grad_gated = wide(grad_out) * scale
        if gate is not None:
            grad_both = grad_gated * F.silu(gate)
        both = torch.zeros_like(grad_both) if need_z else grad_both
        grad_weights = [torch.zeros_like(weight) for weight in source.dt_weights]
        wanted = Needs(
            u=need.x,
            delta=need.dbl or need.dt_weight or need.dt_bias,
            A=need.A,
            B=need.dbl,
            C=need.dbl,
            D=need.D,
            bias=need.dt_bias,
            y=need_z,
        )
        grad_A, grad_D, grad_bias = source.scan(chunk).backward(
            source.load, load_grad, store, checkpoints, None, wanted
        )
        if gate is not None and need_z:
            grads[12].copy_(torch.ops.aten.silu_backward(grad_gated.mul_(both), gate))
    for first, pair in ((4, grad_weights), (6, grad_bias), (8, grad_A), (10, grad_D)):
        for index, value in enumerate(pair, start=first):
            if needs[index]:
                grads[index].copy_(value)
    return tuple(grads)
