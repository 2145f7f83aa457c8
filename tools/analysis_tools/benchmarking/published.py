"""Vim's published composition: both directions by the kernels of causal-conv1d and mamba-ssm.

The published code (hustvl/Vim) calls their compiled modules itself and so does this: the Python
packages around them, and what those import, are not needed. Written for causal-conv1d 1.7.0 and
mamba-ssm 2.3.2; :mod:`build_baseline` compiles both from their source distributions.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _kernels(name: str) -> Any:
    return importlib.import_module(f'{name}_cuda')


def as_in_proj_leaves_it(xz: Tensor) -> Tensor:
    """(B, L, 2E) -> (B, 2E, L) over memory laid out as (2E, B, L).

    The published in_proj multiplies its weight from the left, so channels are outermost. The
    products below count on it: tokens of all sequences are one axis without a copy.
    """
    return xz.permute(2, 0, 1).contiguous().transpose(0, 1)


def inner(activations: list[Tensor], parameters: list[Tensor]) -> Tensor:
    """Everything between in_proj and out_proj; see :mod:`benchmarking.scan_cases`.

    Returns:
        What out_proj reads, (B, L, E): a view, or in training the copy that ``F.linear`` makes of
        it for a weight with gradients.
    """
    w_f, w_b, b_f, b_b, x_proj_f, x_proj_b, *scan = parameters
    dt_w_f, dt_w_b, dt_b_f, dt_b_b, A_f, A_b, D_f, D_b = scan
    (xz,) = activations
    out_f = _Direction.apply(xz, w_f, b_f, x_proj_f, dt_w_f, dt_b_f, A_f, D_f)
    out_b = _Direction.apply(xz.flip(-1), w_b, b_b, x_proj_b, dt_w_b, dt_b_b, A_b, D_b)
    out: Tensor = (out_f + out_b.flip(-1)).transpose(1, 2) / 2
    return out.contiguous() if torch.is_grad_enabled() else out


def _convolve(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Causal, with silu: (B, E, L) to the same."""
    out = torch.empty_like(x)
    _kernels('causal_conv1d').causal_conv1d_fwd(x, w, b, None, None, out, None, True)
    return out


def _outer_channels(x: Tensor) -> Tensor:
    """(B, E, L) -> (E, B·L), a view of what is laid out as (E, B, L)."""
    return x.transpose(0, 1).reshape(x.shape[1], -1)


def _steps(dbl: Tensor, dt_w: Tensor, batch: int) -> Tensor:
    """dt_proj without its bias: rows of (B·L, R + 2N) to (B, E, L)."""
    delta: Tensor = dt_w @ dbl[:, : dt_w.shape[1]].t()
    return delta.view(dt_w.shape[0], batch, -1).transpose(0, 1)


class _Direction(torch.autograd.Function):
    """One direction, from in_proj's output (B, 2E, L) to the gated output (B, E, L).

    Weights of products are rounded to the activations' dtype, as autocast would have it; those of
    the convolution, A, D and the bias of the steps stay float32. The convolution's output and the
    steps are not saved but computed again for the backward pass (the published code's checkpoint
    level 1).
    """

    @staticmethod
    def forward(ctx: Any, xz: Tensor, *weights: Tensor) -> Tensor:
        w, b, x_proj, dt_w, dt_b, A, D = weights
        batch, states = xz.shape[0], A.shape[1]
        x_proj, dt_w = x_proj.to(xz.dtype), dt_w.to(xz.dtype)
        x, z = xz.chunk(2, dim=1)
        u = _convolve(x, w, b)
        dbl = F.linear(_outer_channels(u).t(), x_proj)  # (B·L, R + 2N)

        def channels_first(columns: Tensor) -> Tensor:
            """(B·L, N) -> (B, 1, N, L), copied."""
            return columns.view(batch, -1, states).transpose(1, 2).unsqueeze(1).contiguous()

        B, C = (channels_first(m) for m in dbl[:, -2 * states :].split(states, dim=1))
        scan = (u, _steps(dbl, dt_w, batch), A, B, C, D, z, dt_b, True)
        y, checkpoints, out = _kernels('selective_scan').fwd(*scan)
        ctx.save_for_backward(xz, w, b, x_proj, dt_w, dt_b, A, D, dbl, B, C, y, checkpoints)
        gated: Tensor = out
        return gated

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        xz, w, b, x_proj, dt_w, dt_b, A, D, dbl, B, C, y, checkpoints = ctx.saved_tensors
        grad_out = grads[0] if grads[0].stride(-1) == 1 else grads[0].contiguous()
        batch, (rank, states) = xz.shape[0], (dt_w.shape[1], A.shape[1])
        x, z = xz.chunk(2, dim=1)
        u, delta = _convolve(x, w, b), _steps(dbl, dt_w, batch)
        # The gradients of x and z are written side by side, where they are one tensor.
        grad_xz = torch.empty_like(xz)
        grad_x, grad_z = grad_xz.chunk(2, dim=1)
        # The published code also lets the kernel write the gated output once more (the last True).
        scan = (u, delta, A, B, C, D, z, dt_b, grad_out, checkpoints, y, grad_z, True, True)
        grads = _kernels('selective_scan').bwd(*scan)
        grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_dt_b, *_ = grads
        grad_dbl = torch.empty_like(dbl)
        for columns, grad in zip(grad_dbl[:, rank:].split(states, dim=1), (grad_B, grad_C)):
            columns.view(batch, -1, states).copy_(grad.squeeze(1).transpose(1, 2))
        grad_delta = _outer_channels(grad_delta)
        grad_dt_w = grad_delta @ dbl[:, :rank]
        grad_dbl[:, :rank] = grad_delta.t() @ dt_w
        grad_x_proj = grad_dbl.t() @ _outer_channels(u).t()
        grad_u = _outer_channels(grad_u).addmm_(x_proj.t(), grad_dbl.t())
        grad_u = grad_u.view(u.shape[1], batch, -1).transpose(0, 1)
        grad_w = torch.zeros_like(w, dtype=torch.float32)
        grad_b = torch.zeros_like(b, dtype=torch.float32)
        _kernels('causal_conv1d').causal_conv1d_bwd(
            *(x, w, b, grad_u, None, None, None, grad_x, grad_w, grad_b, None, True)
        )
        return grad_xz, grad_w, grad_b, grad_x_proj, grad_dt_w, grad_dt_b, grad_A, grad_D
