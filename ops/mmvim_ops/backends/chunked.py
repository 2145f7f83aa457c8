"""The pure-torch implementation of both scans: how their inputs and outputs meet the chunked scan.

The scan itself is :mod:`mmvim_ops.chunk_scan`. The functions named ``*_forward`` and ``*_backward``
are the pure-torch kernels of the operators declared in :mod:`mmvim_ops.library`; the others are the
ops, with the signatures of :mod:`mmvim_ops.reference`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmvim_ops.chunk_scan import Needs, Scan, TokenOrder, Tokens, chunk_length
from mmvim_ops.conv import bi_conv1d_silu, conv1d_silu
from mmvim_ops.norm import add_rms_norm
from mmvim_ops.precision import full_precision, wide, wide_dtype

__all__ = [
    'add_rms_norm',
    'bi_conv1d_silu',
    'bidirectional_backward',
    'bidirectional_forward',
    'bidirectional_selective_scan',
    'conv1d_silu',
    'selective_backward',
    'selective_forward',
    'selective_scan',
]


def _empty_grad(tensor: Tensor | None, need: bool, lead: Tensor) -> Tensor:
    """Room for the gradient of an input, contiguous; empty where it is not needed."""
    if tensor is None or not need:
        return lead.new_empty(0)
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


class _Selective:
    """Chunks of the inputs of the generic scan: one direction, any number of groups."""

    def __init__(
        self, u: Tensor, delta: Tensor, B: Tensor, C: Tensor, reverse: bool, groups: int
    ) -> None:
        self.inputs, self.groups = (u, delta, B, C), groups
        self.order = TokenOrder(u.shape[1], reverse, wide_dtype(u.dtype))

    def load(self, tokens: slice) -> Tokens:
        """The inputs of a chunk."""
        return Tokens(*(self.read(tensor, tokens) for tensor in self.inputs))

    def read(self, tensor: Tensor, tokens: slice) -> Tensor:
        """(B, L, E) or (B, L, G, N) -> (T, B, G, 1, E / G or N), contiguous."""
        part = self.order.read(tensor, tokens)
        width = part.shape[-1] if part.dim() == 4 else part.shape[-1] // self.groups
        return part.contiguous().view(*part.shape[:2], self.groups, 1, width)

    def write(self, tensor: Tensor, tokens: slice, value: Tensor) -> None:
        """The way back, into ``tensor``."""
        self.order.write(tensor, tokens, value.reshape(*value.shape[:2], *tensor.shape[2:]))


def _scan(
    u: Tensor,
    A: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    groups: int,
    chunk: int,
) -> Scan:
    """The scan of the generic op: E channels become groups x E / groups."""
    D = None if D is None else D.reshape(groups, -1)
    bias = None if delta_bias is None else delta_bias.reshape(groups, -1)
    by_group = A.reshape(groups, -1, A.shape[1])
    return Scan(u.shape[0], u.shape[1], by_group, D, bias, delta_softplus, chunk)


def selective_forward(
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
    """The kernel of ``mmvim::selective_scan``; see :mod:`mmvim_ops.library` for the arguments."""
    out = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    source = _Selective(u, delta, B, C, reverse, groups)

    def store(tokens: slice, y: Tensor) -> None:
        if z is not None:
            y = y.mul_(F.silu(source.read(z, tokens)))
        source.write(out, tokens, y)

    with full_precision(u.device):
        last_state, checkpoints = _scan(u, A, D, delta_bias, delta_softplus, groups, chunk).forward(
            source.load, store
        )
    return out, last_state, checkpoints


def selective_backward(
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
    deterministic: bool,
) -> tuple[Tensor, ...]:
    """The kernel of ``mmvim::selective_scan_backward``; see :mod:`mmvim_ops.library`."""
    need_u, need_delta, need_A, need_B, need_C, need_D, need_z, need_bias = needs
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    grads = [_empty_grad(tensor, need, u) for tensor, need in zip(inputs, needs)]
    source = _Selective(u, delta, B, C, reverse, groups)

    def load_grad(tokens: slice) -> Tensor:
        grad = source.read(grad_out, tokens)
        if z is not None:
            grad = grad * F.silu(source.read(z, tokens))
        return grad

    def store(tokens: slice, grad: Tokens, y: Tensor | None) -> None:
        for target, value, need in zip((*grads[:2], *grads[3:5]), grad, (*needs[:2], *needs[3:5])):
            if need:
                source.write(target, tokens, value)
        if y is not None and z is not None:
            grad_gated = source.read(grad_out, tokens) * y
            gate = source.read(z, tokens)
            source.write(grads[6], tokens, torch.ops.aten.silu_backward(grad_gated, gate))

    with full_precision(u.device):
        scan = _scan(u, A, D, delta_bias, delta_softplus, groups, chunk)
        wanted = Needs(
            u=need_u,
            delta=need_delta or need_bias,
            A=need_A,
            B=need_B,
            C=need_C,
            D=need_D,
            bias=need_bias,
            y=need_z,
        )
        grad_A, grad_D, grad_bias = scan.backward(
            source.load, load_grad, store, checkpoints, grad_last_state, wanted
        )
    for index, value in ((2, grad_A), (5, grad_D), (7, grad_bias)):
        if needs[index]:
            grads[index].copy_(value.reshape(grads[index].shape))
    return tuple(grads)


class _Bidirectional:
    """Chunks of the inputs of the bidirectional scan: two groups, the second scanned in reverse."""

    def __init__(
        self,
        xs: tuple[Tensor, Tensor],
        dbls: tuple[Tensor, Tensor],
        dt_weights: tuple[Tensor, Tensor],
        states: int,
    ) -> None:
        self.xs, self.dbls = xs, dbls
        length, dtype = xs[0].shape[1], wide_dtype(xs[0].dtype)
        self.orders = (TokenOrder(length, False, dtype), TokenOrder(length, True, dtype))
        self.dt_weights = [wide(weight) for weight in dt_weights]
        self.sizes = (dt_weights[0].shape[1], states, states)

    def load(self, tokens: slice) -> Tokens:
        """The inputs of a chunk, dt_proj applied."""
        dts, Bs, Cs = zip(*(dbl.split(self.sizes, dim=-1) for dbl in self.read(self.dbls, tokens)))
        deltas = [dt @ weight.t() for dt, weight in zip(dts, self.dt_weights)]
        us = self.read(self.xs, tokens)
        return Tokens(*(torch.stack(pair, dim=2).unsqueeze(3) for pair in (us, deltas, Bs, Cs)))

    def read(self, tensors: Sequence[Tensor], tokens: slice) -> list[Tensor]:
        """One (B, L, ...) tensor a direction -> one (T, B, ...) chunk a direction."""
        return [order.read(tensor, tokens) for order, tensor in zip(self.orders, tensors)]


def bidirectional_forward(
    x_f: Tensor,
    x_b: Tensor,
    dbl_f: Tensor,
    dbl_b: Tensor,
    dt_w_f: Tensor,
    dt_w_b: Tensor,
    dt_b_f: Tensor,
    dt_b_b: Tensor,
    A_f: Tensor,
    A_b: Tensor,
    D_f: Tensor,
    D_b: Tensor,
    z: Tensor | None,
    scale: float,
    wide_out: bool,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """The kernel of ``mmvim::bidirectional_selective_scan``; see :mod:`mmvim_ops.library`."""
    source = _Bidirectional((x_f, x_b), (dbl_f, dbl_b), (dt_w_f, dt_w_b), A_f.shape[1])
    both = torch.zeros(x_f.shape, dtype=wide_dtype(x_f.dtype), device=x_f.device)

    def store(tokens: slice, y: Tensor) -> None:
        for order, y_d in zip(source.orders, y.squeeze(3).unbind(2)):
            order.write(both, tokens, y_d, add=True)

    with full_precision(x_f.device):
        scan = _pair(x_f, (A_f, A_b), (D_f, D_b), (dt_b_f, dt_b_b), chunk)
        _, checkpoints = scan.forward(source.load, store)
        if z is not None:
            both.mul_(F.silu(wide(z)))
        both.mul_(scale)
    return both if wide_out else both.to(x_f.dtype), checkpoints


def _pair(
    x: Tensor,
    A: tuple[Tensor, Tensor],
    D: tuple[Tensor, Tensor],
    bias: tuple[Tensor, Tensor],
    chunk: int,
) -> Scan:
    """The scan of the bidirectional op: one group a direction."""
    wide_A, wide_D, wide_bias = (torch.stack([wide(x) for x in pair]) for pair in (A, D, bias))
    return Scan(x.shape[0], x.shape[1], wide_A, wide_D, wide_bias, True, chunk)


def bidirectional_backward(
    grad_out: Tensor,
    x_f: Tensor,
    x_b: Tensor,
    dbl_f: Tensor,
    dbl_b: Tensor,
    dt_w_f: Tensor,
    dt_w_b: Tensor,
    dt_b_f: Tensor,
    dt_b_b: Tensor,
    A_f: Tensor,
    A_b: Tensor,
    D_f: Tensor,
    D_b: Tensor,
    z: Tensor | None,
    checkpoints: Tensor,
    scale: float,
    chunk: int,
    needs: Sequence[bool],
    deterministic: bool,
) -> tuple[Tensor, ...]:
    """The kernel of ``mmvim::bidirectional_selective_scan_backward``."""
    inputs = (x_f, x_b, dbl_f, dbl_b, dt_w_f, dt_w_b, dt_b_f, dt_b_b, A_f, A_b, D_f, D_b, z)
    need_x, need_dbl, need_w, need_bias, need_A, need_D = (
        any(needs[first : first + 2]) for first in range(0, 12, 2)
    )
    need_z = needs[12] and z is not None
    grads = [_empty_grad(tensor, need, x_f) for tensor, need in zip(inputs, needs)]
    source = _Bidirectional((x_f, x_b), (dbl_f, dbl_b), (dt_w_f, dt_w_b), A_f.shape[1])

    def load_grad(tokens: slice) -> Tensor:
        return torch.stack(source.read((grad_both, grad_both), tokens), dim=2).unsqueeze(3)

    def store(tokens: slice, grad: Tokens, y: Tensor | None) -> None:
        parts = zip(*(part.squeeze(3).unbind(2) for part in grad))
        dbls = source.read(source.dbls, tokens)
        for d, (order, (grad_u, grad_delta, grad_B, grad_C)) in enumerate(
            zip(source.orders, parts)
        ):
            if needs[d]:
                order.write(grads[d], tokens, grad_u)
            if needs[2 + d]:
                grad_dbl = torch.cat((grad_delta @ source.dt_weights[d], grad_B, grad_C), dim=-1)
                order.write(grads[2 + d], tokens, grad_dbl)
            if needs[4 + d]:
                dt = dbls[d][..., : source.sizes[0]]
                grad_weights[d] += grad_delta.flatten(0, 1).t() @ dt.flatten(0, 1)
            if y is not None:
                order.write(both, tokens, y[:, :, d, 0], add=True)

    with full_precision(x_f.device):
        gate = None if z is None else wide(z)
        grad_both = grad_gated = wide(grad_out) * scale
        if gate is not None:
            grad_both = grad_gated * F.silu(gate)
        both = torch.zeros_like(grad_both) if need_z else grad_both
        grad_weights = [torch.zeros_like(weight) for weight in source.dt_weights]
        wanted = Needs(
            u=need_x,
            delta=need_dbl or need_w or need_bias,
            A=need_A,
            B=need_dbl,
            C=need_dbl,
            D=need_D,
            bias=need_bias,
            y=need_z,
        )
        scan = _pair(x_f, (A_f, A_b), (D_f, D_b), (dt_b_f, dt_b_b), chunk)
        grad_A, grad_D, grad_bias = scan.backward(
            source.load, load_grad, store, checkpoints, None, wanted
        )
        if gate is not None and need_z:
            grads[12].copy_(torch.ops.aten.silu_backward(grad_gated.mul_(both), gate))
    for first, pair in ((4, grad_weights), (6, grad_bias), (8, grad_A), (10, grad_D)):
        for index, value in enumerate(pair, start=first):
            if needs[index]:
                grads[index].copy_(value)
    return tuple(grads)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    reverse: bool = False,
    groups: int = 1,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """See :func:`mmvim_ops.functional.selective_scan`."""
    if B.dim() == 3:
        B = B.unsqueeze(2)
    if C.dim() == 3:
        C = C.unsqueeze(2)
    batch, length, channels = u.shape
    chunk = chunk_length(batch, length, channels, A.shape[1], u.device)
    out, last_state, _ = torch.ops.mmvim.chunked_selective_scan(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, groups, chunk
    )
    return (out, last_state) if return_last_state else out


def bidirectional_selective_scan(
    x_f: Tensor,
    x_b: Tensor,
    dbl_f: Tensor,
    dbl_b: Tensor,
    dt_w_f: Tensor,
    dt_w_b: Tensor,
    dt_b_f: Tensor,
    dt_b_b: Tensor,
    A_f: Tensor,
    A_b: Tensor,
    D_f: Tensor,
    D_b: Tensor,
    z: Tensor,
    scale: float = 0.5,
) -> Tensor:
    """See :func:`mmvim_ops.functional.bidirectional_selective_scan`."""
    batch, length, channels = x_f.shape
    chunk = chunk_length(batch, length, 2 * channels, A_f.shape[1], x_f.device)
    out: Tensor = torch.ops.mmvim.chunked_bidirectional_selective_scan(
        *(x_f, x_b, dbl_f, dbl_b, dt_w_f, dt_w_b, dt_b_f, dt_b_b),
        *(A_f, A_b, D_f, D_b, z, scale, False, chunk),
    )[0]
    return out
