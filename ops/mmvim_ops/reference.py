"""The specification: each op as a plain token loop under ordinary autograd.

Short, slow and meant to be read against the equations. Every faster implementation is tested
against these functions, forwards and backwards. Float64 in means float64 arithmetic throughout; any
other floating dtype is computed in float32 and the result rounded once, to the dtype of ``u`` or
``x``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmvim_ops.precision import wide
from mmvim_ops.scan_inputs import ScanInputs

__all__ = [
    'add_rms_norm',
    'bi_conv1d_silu',
    'bidirectional_selective_scan',
    'conv1d_silu',
    'selective_scan',
]


def add_rms_norm(x: Tensor, added: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum, divided by its root mean square over the channels and scaled, and the sum itself.

    The division happens to the sum as it is rounded to the dtype of ``x``.
    """
    total = (x + added).to(x.dtype)
    mean_square = wide(total).square().mean(dim=-1, keepdim=True)
    normed = wide(total) / torch.sqrt(mean_square + eps) * wide(weight)
    return normed.to(weight.dtype), total


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
    """Selective state-space recurrence (Mamba, arXiv 2312.00752, section 3; eq. 2 and 4).

    With ``dt = softplus(delta + delta_bias)``::

        h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t,    y_t = C_t h_t + D u_t,    out_t = y_t silu(z_t)

    where ``reverse=True`` replaces ``h_{t-1}`` by ``h_{t+1}``. Shapes and dtypes are those of
    :func:`mmvim_ops.functional.selective_scan`.
    """
    batch, length, channels = u.shape
    if isinstance(length, torch.SymInt) and torch.compiler.is_exporting():
        raise RuntimeError(
            "backend='reference' takes token after token, so that its graph holds one size: export "
            'it without dynamic_shapes, or with another backend (scan_backend of a backbone).'
        )
    states = A.shape[1]
    out_dtype = u.dtype
    u, delta, A = wide(u), wide(delta), wide(A)

    dt = delta if delta_bias is None else delta + wide(delta_bias)
    if delta_softplus:
        dt = F.softplus(dt)
    # Give every channel its group's B and C: (B, L, groups, N) -> (B, L, E, N) as a view.
    per_group = channels // groups
    spread = (batch, length, groups, per_group, states)
    B = wide(B).reshape(batch, length, groups, 1, states).expand(spread)
    C = wide(C).reshape(batch, length, groups, 1, states).expand(spread)

    # unbind rather than indexing: its backward is one stack, not one zero-filled tensor per token.
    tokens = list(zip(u.unbind(1), dt.unbind(1), B.unbind(1), C.unbind(1)))
    state = u.new_zeros(batch, channels, states)
    ys: list[Tensor] = []
    for u_t, dt_t, B_t, C_t in reversed(tokens) if reverse else tokens:
        decay = torch.exp(dt_t.unsqueeze(-1) * A)
        state = decay * state + (dt_t * u_t).unsqueeze(-1) * B_t.reshape(state.shape)
        ys.append((state * C_t.reshape(state.shape)).sum(-1))
    y = torch.stack(ys[::-1] if reverse else ys, dim=1)

    if D is not None:
        y = y + wide(D) * u
    if z is not None:
        y = y * F.silu(wide(z))
    out = y.to(out_dtype)
    return (out, state) if return_last_state else out


def conv1d_silu(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, reverse: bool = False
) -> Tensor:
    """Depthwise causal convolution over the tokens, then SiLU.

    ``y_t = silu(bias + sum_k weight[:, W-1-k] x_{t-k})``, where ``reverse=True`` reads ``x_{t+k}``
    instead. Shapes are those of :func:`mmvim_ops.functional.conv1d_silu`.
    """
    length, width = x.shape[1], weight.shape[1]
    padded = F.pad(wide(x).flip(1) if reverse else wide(x), (0, 0, width - 1, 0))
    y = sum(padded[:, k : k + length] * wide(weight)[:, k] for k in range(width))
    assert isinstance(y, Tensor)  # the type of sum() allows the int 0 of an empty range
    if bias is not None:
        y = y + wide(bias)
    y = F.silu(y.flip(1) if reverse else y)
    return y.to(x.dtype)


def bi_conv1d_silu(
    x: Tensor, w_f: Tensor, b_f: Tensor | None, w_b: Tensor, b_b: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Causal and anti-causal :func:`conv1d_silu` of the same input, each with its own weights."""
    return conv1d_silu(x, w_f, b_f), conv1d_silu(x, w_b, b_b, reverse=True)


def bidirectional_selective_scan(
    forward: ScanInputs,
    reverse: ScanInputs,
    z: Tensor | None = None,
    scale: float = 0.5,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Both scans of a Vim block (Vim, arXiv 2401.09417, algorithm 1), gated and summed.

    ``out = (scan(forward) + reverse_scan(reverse)) * silu(z) * scale``. Shapes and dtypes are
    those of :func:`mmvim_ops.functional.bidirectional_selective_scan`.
    """

    def one(given: ScanInputs, reverse: bool) -> Tensor:
        states, rank = given.A.shape[1], given.dt_weight.shape[1]
        dt, B, C = wide(given.dbl).split((rank, states, states), dim=-1)
        y = selective_scan(
            wide(given.x),
            dt @ wide(given.dt_weight).t(),
            given.A,
            B,
            C,
            D=given.D,
            delta_bias=given.dt_bias,
            delta_softplus=True,
            reverse=reverse,
        )
        assert isinstance(y, Tensor)  # no last state was asked for
        return y

    y = one(forward, reverse=False) + one(reverse, reverse=True)
    if z is not None:
        y = y * F.silu(wide(z))
    return (y * scale).to(forward.x.dtype if out_dtype is None else out_dtype)
