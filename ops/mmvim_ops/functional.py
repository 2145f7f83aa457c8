"""The ops: inputs checked once, then handed to the implementation that ``backend`` names.

Everything is channel-last, ``(B, L, E)``: B batch, L tokens, E inner channels, N states, R dt rank.
Activations may be float16, bfloat16, float32 or float64 and parameters any of these too; the
arithmetic is float32 (float64 for float64, which does not mix with the others), under autocast as
well, and the result is rounded once.
"""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from mmvim_ops import inner
from mmvim_ops.backends import select
from mmvim_ops.checks import (
    check_conv,
    check_flag,
    check_scale,
    check_scan,
    check_shape,
    check_sizes,
    check_tensors,
    given,
)
from mmvim_ops.precision import full_precision

__all__ = [
    'add_rms_norm',
    'bi_conv1d_silu',
    'bidirectional_selective_scan',
    'conv1d_silu',
    'selective_scan',
    'vim_inner',
]


@overload
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
    return_last_state: Literal[False] = False,
    backend: str = 'auto',
) -> Tensor: ...
@overload
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
    *,
    return_last_state: Literal[True],
    backend: str = 'auto',
) -> tuple[Tensor, Tensor]: ...
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
    backend: str = 'auto',
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective state-space scan (Mamba, arXiv 2312.00752, section 3).

    With ``dt = delta + delta_bias``, through softplus if ``delta_softplus``::

        h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t,    y_t = C_t h_t + D u_t,    out_t = y_t silu(z_t)

    Args:
        u: (B, L, E), the scanned input.
        delta: (B, L, E), the step before bias and softplus.
        A: (E, N), the decay rates themselves, negative in a stable model (not ``A_log``).
        B: (B, L, N), or (B, L, groups, N): required for more than one group.
        C: As B.
        D: (E,), the skip connection. Defaults to none.
        z: (B, L, E), the gate. Defaults to none.
        delta_bias: (E,). Defaults to none.
        delta_softplus: Pass the step through softplus. Defaults to False.
        reverse: Scan from the last token to the first (h_t depends on h_{t+1}); nothing changes
            place. Defaults to False.
        groups: Contiguous groups of E / groups channels that share B and C. Defaults to 1.
        return_last_state: Also return the state after the last token scanned. Defaults to False.
        backend: See :func:`mmvim_ops.available_backends`. Defaults to 'auto'.

    Returns:
        (B, L, E) in the dtype of ``u``; with ``return_last_state`` also the state (B, E, N) in
        float32 (float64 for float64).

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: An argument has the wrong shape, device or value, or the backend is unknown.
        RuntimeError: The backend asked for cannot serve the call.
    """
    tensors = given(u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias)
    check_tensors('u', tensors)
    check_flag('delta_softplus', delta_softplus)
    check_flag('reverse', reverse)
    check_flag('return_last_state', return_last_state)
    check_sizes('u', u, '(B, L, E)')
    check_sizes('A', A, '(E, N)')
    batch, length, channels = u.shape
    if isinstance(groups, bool) or not isinstance(groups, int):
        raise TypeError(f'groups must be an int, got {groups!r}')
    if groups < 1 or channels % groups:
        raise ValueError(f'groups={groups} does not divide E={channels}; choose a divisor of E')
    states = A.shape[1]
    check_shape('delta', delta, (batch, length, channels), '(B, L, E)')
    check_shape('A', A, (channels, states), '(E, N)')
    for name, tensor in (('B', B), ('C', C)):
        if groups == 1 and tensor.dim() == 3:
            check_shape(name, tensor, (batch, length, states), '(B, L, N)')
        else:
            shape = (batch, length, groups, states)
            check_shape(name, tensor, shape, '(B, L, groups, N)')
    if D is not None:
        check_shape('D', D, (channels,), '(E,)')
    if z is not None:
        check_shape('z', z, (batch, length, channels), '(B, L, E)')
    if delta_bias is not None:
        check_shape('delta_bias', delta_bias, (channels,), '(E,)')

    shape = (batch, length, groups, states)
    scan = select(backend, u.device, u.dtype, states).selective_scan
    with full_precision(u.device):
        result: Tensor | tuple[Tensor, Tensor] = scan(
            u,
            delta,
            A,
            B.reshape(shape),
            C.reshape(shape),
            D,
            z,
            delta_bias,
            delta_softplus,
            reverse,
            groups,
            return_last_state,
        )
    return result


def conv1d_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    reverse: bool = False,
    backend: str = 'auto',
) -> Tensor:
    """Depthwise causal convolution over the tokens, then SiLU.

    Args:
        x: (B, L, E).
        weight: (E, W); ``weight[:, W-1]`` meets the token itself, ``weight[:, 0]`` the token W-1
            before it.
        bias: (E,). Defaults to none.
        reverse: Anti-causal: read the tokens after instead of before. Defaults to False.
        backend: See :func:`mmvim_ops.available_backends`. Defaults to 'auto'.

    Returns:
        (B, L, E) in the dtype of ``x``.

    Raises:
        TypeError, ValueError, RuntimeError: As :func:`selective_scan`.
    """
    check_tensors('x', given(x=x, weight=weight, bias=bias))
    check_flag('reverse', reverse)
    check_sizes('x', x, '(B, L, E)')
    check_conv(x, 'weight', weight, 'bias', bias)
    conv = select(backend, x.device, x.dtype).conv1d_silu
    with full_precision(x.device):
        out: Tensor = conv(x, weight, bias, reverse)
    return out


def bi_conv1d_silu(
    x: Tensor,
    w_f: Tensor,
    b_f: Tensor | None,
    w_b: Tensor,
    b_b: Tensor | None,
    backend: str = 'auto',
) -> tuple[Tensor, Tensor]:
    """Causal and anti-causal :func:`conv1d_silu` of one input.

    Args:
        x: (B, L, E).
        w_f: (E, W), the causal weight.
        b_f: (E,) or None, its bias.
        w_b: (E, W), the anti-causal weight, of the same width.
        b_b: (E,) or None, its bias.
        backend: See :func:`mmvim_ops.available_backends`. Defaults to 'auto'.

    Returns:
        The causal and the anti-causal result, (B, L, E) each in the dtype of ``x``; token t of both
        belongs to token t of ``x``.

    Raises:
        TypeError, ValueError, RuntimeError: As :func:`selective_scan`.
    """
    check_tensors('x', given(x=x, w_f=w_f, b_f=b_f, w_b=w_b, b_b=b_b))
    check_sizes('x', x, '(B, L, E)')
    check_conv(x, 'w_f', w_f, 'b_f', b_f)
    check_conv(x, 'w_b', w_b, 'b_b', b_b)
    check_shape('w_b', w_b, tuple(w_f.shape), '(E, W)')
    conv = select(backend, x.device, x.dtype).bi_conv1d_silu
    with full_precision(x.device):
        out: tuple[Tensor, Tensor] = conv(x, w_f, b_f, w_b, b_b)
    return out


def add_rms_norm(
    x: Tensor, added: Tensor, weight: Tensor, eps: float = 1e-5, backend: str = 'auto'
) -> tuple[Tensor, Tensor]:
    """Add, then normalise by the root mean square (Zhang and Sennrich, arXiv 1910.07467, eq. 4).

    Args:
        x: (B, L, C), the residual stream.
        added: (B, L, C), what a block adds to it.
        weight: (C,).
        eps: Added to the mean of the squares. Defaults to 1e-5.
        backend: See :func:`mmvim_ops.available_backends`. Defaults to 'auto'.

    Returns:
        ``(x + added) / sqrt(mean((x + added)^2) + eps) * weight`` in the dtype of ``weight``, and
        ``x + added`` in the dtype of ``x``, (B, L, C) each.

    Raises:
        TypeError, ValueError, RuntimeError: As :func:`selective_scan`.
    """
    check_tensors('x', dict(x=x, added=added, weight=weight))
    check_sizes('x', x, '(B, L, C)')
    check_shape('added', added, tuple(x.shape), '(B, L, C)')
    check_shape('weight', weight, (x.shape[2],), '(C,)')
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or eps < 0:
        raise ValueError(f'eps must be a number >= 0, got {eps!r}')
    normalise = select(backend, x.device, x.dtype).add_rms_norm
    with full_precision(x.device):
        out: tuple[Tensor, Tensor] = normalise(x, added, weight, eps)
    return out


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
    backend: str = 'auto',
) -> Tensor:
    """Both scans of a Vim block, gated and summed (Vim, arXiv 2401.09417, algorithm 1).

    ``out = (scan(x_f) + reverse_scan(x_b)) * silu(z) * scale``, where a scan of direction d splits
    ``dbl_d`` into (dt, B, C) and runs :func:`selective_scan` with
    ``delta = softplus(dt dt_w_d^T + dt_b_d)``, ``A_d`` and ``D_d``. Nothing is to be flipped by the
    caller. The two directions may share any of their tensors.

    Args:
        x_f: (B, L, E), input of the forward scan.
        x_b: (B, L, E), input of the reverse scan.
        dbl_f: (B, L, R + 2 N), the output of ``x_proj``: dt, then B, then C.
        dbl_b: (B, L, R + 2 N).
        dt_w_f: (E, R), weight of ``dt_proj``.
        dt_w_b: (E, R).
        dt_b_f: (E,), bias of ``dt_proj``.
        dt_b_b: (E,).
        A_f: (E, N), the decay rates themselves, negative in a stable model (not ``A_log``).
        A_b: (E, N).
        D_f: (E,), the skip connection.
        D_b: (E,).
        z: (B, L, E), the gate.
        scale: Factor of the sum: 0.5 averages the directions, 1 sums them. Defaults to 0.5.
        backend: See :func:`mmvim_ops.available_backends`. Defaults to 'auto'.

    Returns:
        (B, L, E) in the dtype of ``x_f``.

    Raises:
        TypeError, ValueError, RuntimeError: As :func:`selective_scan`.
    """
    forward = dict(x_f=x_f, dbl_f=dbl_f, dt_w_f=dt_w_f, dt_b_f=dt_b_f, A_f=A_f, D_f=D_f)
    backward = dict(x_b=x_b, dbl_b=dbl_b, dt_w_b=dt_w_b, dt_b_b=dt_b_b, A_b=A_b, D_b=D_b)
    check_tensors('x_f', {**forward, **backward, 'z': z})
    check_scale(scale)
    check_sizes('x_f', x_f, '(B, L, E)')
    check_sizes('A_f', A_f, '(E, N)')
    check_sizes('dt_w_f', dt_w_f, '(E, R)')
    batch, length, channels = x_f.shape
    states, rank = A_f.shape[1], dt_w_f.shape[1]
    check_shape('x_b', x_b, (batch, length, channels), '(B, L, E)')
    check_shape('z', z, (batch, length, channels), '(B, L, E)')
    for suffix, tensors in (('_f', forward), ('_b', backward)):
        dbl_shape = (batch, length, rank + 2 * states)
        check_shape(f'dbl{suffix}', tensors[f'dbl{suffix}'], dbl_shape, '(B, L, R + 2 N)')
        check_scan(suffix, tensors, channels, states, rank)

    scan = select(backend, x_f.device, x_f.dtype, states, rank).bidirectional_selective_scan
    with full_precision(x_f.device):
        out: Tensor = scan(
            *(x_f, x_b, dbl_f, dbl_b, dt_w_f, dt_w_b, dt_b_f, dt_b_b),
            *(A_f, A_b, D_f, D_b, z, scale),
        )
    return out


def vim_inner(
    x: Tensor,
    z: Tensor,
    w_f: Tensor,
    b_f: Tensor | None,
    w_b: Tensor,
    b_b: Tensor | None,
    x_w_f: Tensor,
    x_w_b: Tensor,
    dt_w_f: Tensor,
    dt_w_b: Tensor,
    dt_b_f: Tensor,
    dt_b_b: Tensor,
    A_f: Tensor,
    A_b: Tensor,
    D_f: Tensor,
    D_b: Tensor,
    scale: float = 0.5,
    backend: str = 'auto',
) -> Tensor:
    """A Vim block between in_proj and out_proj (Vim, arXiv 2401.09417, algorithm 1).

    ``x_f, x_b = bi_conv1d_silu(x)``, ``dbl_d = x_d x_w_d^T``, then
    :func:`bidirectional_selective_scan` of all that. The product runs in the dtype of ``x``, under
    autocast in autocast's. Training computes the convolutions again for the backward pass instead
    of saving them, except with the backends 'reference' and 'mamba_ssm' and in a compiler.

    Args:
        x: (B, L, E), the first half of the output of in_proj; a view is read where it lies.
        z: (B, L, E), the gate, the other half.
        w_f: (E, W), weight of the causal convolution.
        b_f: (E,) or None, its bias.
        w_b: (E, W), weight of the anti-causal convolution.
        b_b: (E,) or None, its bias.
        x_w_f: (R + 2 N, E), weight of ``x_proj``, whose output is dt, then B, then C.
        x_w_b: (R + 2 N, E).
        dt_w_f: (E, R), weight of ``dt_proj``.
        dt_w_b: (E, R).
        dt_b_f: (E,), bias of ``dt_proj``.
        dt_b_b: (E,).
        A_f: (E, N), the decay rates themselves, negative in a stable model (not ``A_log``).
        A_b: (E, N).
        D_f: (E,), the skip connection.
        D_b: (E,).
        scale: Factor of the sum: 0.5 averages the directions, 1 sums them. Defaults to 0.5.
        backend: See :func:`mmvim_ops.available_backends`. Defaults to 'auto'.

    Returns:
        (B, L, E) in the dtype of ``x``.

    Raises:
        TypeError, ValueError, RuntimeError: As :func:`selective_scan`.
    """
    forward = dict(x_w_f=x_w_f, dt_w_f=dt_w_f, dt_b_f=dt_b_f, A_f=A_f, D_f=D_f)
    backward = dict(x_w_b=x_w_b, dt_w_b=dt_w_b, dt_b_b=dt_b_b, A_b=A_b, D_b=D_b)
    convolutions = given(w_f=w_f, b_f=b_f, w_b=w_b, b_b=b_b)
    check_tensors('x', {'x': x, 'z': z, **convolutions, **forward, **backward})
    check_scale(scale)
    check_sizes('x', x, '(B, L, E)')
    check_shape('z', z, tuple(x.shape), '(B, L, E)')
    check_conv(x, 'w_f', w_f, 'b_f', b_f)
    check_conv(x, 'w_b', w_b, 'b_b', b_b)
    check_shape('w_b', w_b, tuple(w_f.shape), '(E, W)')
    check_sizes('A_f', A_f, '(E, N)')
    check_sizes('dt_w_f', dt_w_f, '(E, R)')
    channels, states, rank = x.shape[2], A_f.shape[1], dt_w_f.shape[1]
    for suffix, tensors in (('_f', forward), ('_b', backward)):
        weight_shape = (rank + 2 * states, channels)
        check_shape(f'x_w{suffix}', tensors[f'x_w{suffix}'], weight_shape, '(R + 2 N, E)')
        check_scan(suffix, tensors, channels, states, rank)

    return inner.vim_inner(
        select(backend, x.device, x.dtype, states, rank),
        x,
        z,
        (w_f, b_f, w_b, b_b),
        (x_w_f, x_w_b),
        (dt_w_f, dt_w_b, dt_b_f, dt_b_b, A_f, A_b, D_f, D_b),
        scale,
    )
