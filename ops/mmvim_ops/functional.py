"""The ops: inputs checked once, then handed to the implementation that ``backend`` names.

Everything is channel-last, ``(B, L, E)``: B batch, L tokens, E inner channels, N states, R dt rank.
Activations may be float16, bfloat16, float32 or float64 and parameters any of these too; the
arithmetic is float32 (float64 for float64, which does not mix with the others), under autocast as
well, and the result is rounded once.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from mmvim_ops.backends import select
from mmvim_ops.checks import (
    check_conv,
    check_eps,
    check_flag,
    check_out_dtype,
    check_scale,
    check_shape,
    check_sizes,
    check_tensors,
    check_tuple,
    given,
)
from mmvim_ops.precision import full_precision
from mmvim_ops.scan_inputs import (
    BlockWeights,
    MixerWeights,
    ScanInputs,
    SelectiveInputs,
    named,
    without_absent,
)

__all__ = [
    'add_rms_norm',
    'bi_conv1d_silu',
    'bidirectional_selective_scan',
    'conv1d_silu',
    'selective_scan',
    'vim_block',
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
        u (Tensor): (B, L, E), the scanned input.
        delta (Tensor): (B, L, E), the step before bias and softplus.
        A (Tensor): (E, N), the decay rates themselves, negative in a stable model (not ``A_log``).
        B (Tensor): (B, L, N), or (B, L, groups, N): required for more than one group.
        C (Tensor): As B.
        D (Tensor | None): (E,), the skip connection. Defaults to none.
        z (Tensor | None): (B, L, E), the gate. Defaults to none.
        delta_bias (Tensor | None): (E,). Defaults to none.
        delta_softplus (bool): Pass the step through softplus. Defaults to False.
        reverse (bool): Scan from the last token to the first (h_t depends on h_{t+1}); nothing
            changes place. Defaults to False.
        groups (int): Contiguous groups of E / groups channels that share B and C. Defaults to 1.
        return_last_state (bool): Also return the state after the last token scanned. Defaults to
            False.
        backend (str): See :func:`mmvim_ops.available_backends`. Defaults to 'auto'.

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
    inputs = SelectiveInputs(u, delta, A, B.reshape(shape), C.reshape(shape), D, z, delta_bias)
    chosen = select(backend, u.device, u.dtype, states)
    with full_precision(u.device):
        out, last_state = chosen.selective_scan(inputs, delta_softplus, reverse, groups)
    return (out, last_state) if return_last_state else out


def conv1d_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    reverse: bool = False,
    backend: str = 'auto',
) -> Tensor:
    """Depthwise causal convolution over the tokens, then SiLU.

    Args:
        x (Tensor): (B, L, E).
        weight (Tensor): (E, W); ``weight[:, W-1]`` meets the token itself, ``weight[:, 0]`` the
            token W-1 before it.
        bias (Tensor | None): (E,). Defaults to none.
        reverse (bool): Anti-causal: read the tokens after instead of before. Defaults to False.
        backend (str): See :func:`mmvim_ops.available_backends`. Defaults to 'auto'.

    Returns:
        (B, L, E) in the dtype of ``x``.

    Raises:
        TypeError, ValueError, RuntimeError: As :func:`selective_scan`.
    """
    check_tensors('x', given(x=x, weight=weight, bias=bias))
    check_flag('reverse', reverse)
    check_sizes('x', x, '(B, L, E)')
    check_conv(x, 'weight', weight, 'bias', bias)
    with full_precision(x.device):
        return select(backend, x.device, x.dtype).conv1d_silu(x, weight, bias, reverse)


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
        x (Tensor): (B, L, E).
        w_f (Tensor): (E, W), the causal weight.
        b_f (Tensor | None): (E,) or None, its bias.
        w_b (Tensor): (E, W), the anti-causal weight, of the same width.
        b_b (Tensor | None): (E,) or None, its bias.
        backend (str): See :func:`mmvim_ops.available_backends`. Defaults to 'auto'.

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
    with full_precision(x.device):
        return select(backend, x.device, x.dtype).bi_conv1d_silu(x, w_f, b_f, w_b, b_b)


def add_rms_norm(
    x: Tensor, added: Tensor, weight: Tensor, eps: float = 1e-5, backend: str = 'auto'
) -> tuple[Tensor, Tensor]:
    """Add, then normalise by the root mean square (Zhang and Sennrich, arXiv 1910.07467, eq. 4).

    Args:
        x (Tensor): (B, L, C), the residual stream.
        added (Tensor): (B, L, C), what a block adds to it.
        weight (Tensor): (C,).
        eps (float): Added to the mean of the squares. Defaults to 1e-5.
        backend (str): See :func:`mmvim_ops.available_backends`. Defaults to 'auto'.

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
    check_eps(eps)
    with full_precision(x.device):
        return select(backend, x.device, x.dtype).add_rms_norm(x, added, weight, eps)


def bidirectional_selective_scan(
    forward: ScanInputs,
    reverse: ScanInputs,
    z: Tensor | None = None,
    scale: float = 0.5,
    out_dtype: torch.dtype | None = None,
    backend: str = 'auto',
) -> Tensor:
    """Both scans of a Vim block, gated and summed (Vim, arXiv 2401.09417, algorithm 1).

    ``out = (scan(forward) + reverse_scan(reverse)) * silu(z) * scale``, where a scan splits its
    ``dbl`` into (dt, B, C) and runs :func:`selective_scan` with
    ``delta = softplus(dt dt_weight^T + dt_bias)``, ``A`` and ``D``. Nothing is to be flipped by the
    caller. The two directions may share any of their tensors.

    Args:
        forward (ScanInputs): What the scan from the first token to the last reads.
        reverse (ScanInputs): What the scan from the last token to the first reads; same shapes.
        z (Tensor | None): (B, L, E), the gate. Defaults to None: no gate.
        scale (float): Factor of the sum: 0.5 averages the directions, 1 sums them. Defaults to 0.5.
        out_dtype (torch.dtype | None): torch.float32 keeps the sums unrounded for a norm that
            follows (torch.float64 for float64 inputs). Defaults to None: that of ``forward.x``.
        backend (str): See :func:`mmvim_ops.available_backends`. Defaults to 'auto'.

    Returns:
        (B, L, E) in ``out_dtype``.

    Raises:
        TypeError, ValueError, RuntimeError: As :func:`selective_scan`.
    """
    check_tuple('forward', forward, ScanInputs)
    check_tuple('reverse', reverse, ScanInputs)
    check_tensors('forward.x', named(forward, reverse) | given(z=z))
    forward.check('forward')
    reverse.check('reverse', like=forward)
    if z is not None:
        check_shape('z', z, tuple(forward.x.shape), '(B, L, E)')
    check_scale(scale)
    check_out_dtype(out_dtype, forward.x.dtype)

    x, states, rank = forward.x, forward.A.shape[1], forward.dt_weight.shape[1]
    chosen = select(backend, x.device, x.dtype, states, rank)
    dtype = x.dtype if out_dtype is None else out_dtype
    with full_precision(x.device):
        return chosen.bidirectional_selective_scan(forward, reverse, z, scale, dtype)


def vim_inner(
    x: Tensor,
    z: Tensor,
    forward: MixerWeights,
    reverse: MixerWeights,
    scale: float = 0.5,
    backend: str = 'auto',
) -> Tensor:
    """A Vim block between in_proj and out_proj (Vim, arXiv 2401.09417, algorithm 1).

    ``x_f, x_b = bi_conv1d_silu(x)``, ``dbl_d = x_d x_proj_d^T``, then
    :func:`bidirectional_selective_scan` of all that. The product runs in the dtype of ``x``, under
    autocast in autocast's. Training computes the convolutions again for the backward pass instead
    of saving them, except with the backends 'reference' and 'mamba_ssm', in a compiler and under a
    transform of ``torch.func``.

    Args:
        x (Tensor): (B, L, E), the first half of the output of in_proj; a view is read where it
            lies.
        z (Tensor): (B, L, E), the gate, the other half.
        forward (MixerWeights): Parameters of the direction from the first token to the last.
        reverse (MixerWeights): Those of the direction from the last token to the first.
        scale (float): Factor of the sum: 0.5 averages the directions, 1 sums them. Defaults to 0.5.
        backend (str): See :func:`mmvim_ops.available_backends`. Defaults to 'auto'.

    Returns:
        (B, L, E) in the dtype of ``x``.

    Raises:
        TypeError, ValueError, RuntimeError: As :func:`selective_scan`.
    """
    check_tuple('forward', forward, MixerWeights)
    check_tuple('reverse', reverse, MixerWeights)
    check_tensors('x', {'x': x, 'z': z, **without_absent(named(forward, reverse))})
    check_sizes('x', x, '(B, L, E)')
    check_shape('z', z, tuple(x.shape), '(B, L, E)')
    forward.check('forward', x.shape[2])
    reverse.check('reverse', x.shape[2], like=forward)
    check_scale(scale)

    states, rank = forward.A.shape[1], forward.dt_weight.shape[1]
    chosen = select(backend, x.device, x.dtype, states, rank)
    return chosen.vim_inner(x, z, forward, reverse, scale)


def vim_block(
    x: Tensor,
    weights: BlockWeights,
    eps: float = 1e-5,
    scale: float = 0.5,
    backend: str = 'auto',
) -> Tensor:
    """A whole Vim block on its residual stream (Vim, arXiv 2401.09417, algorithm 1).

    ``x + gamma out_proj(vim_inner(*in_proj(rms_norm(x))))``. The backend 'cpu' runs a float32 block
    as one operator, which keeps two rows of E channels a token between the projections, if there
    are no gradients, autocast, compiler or transform of ``torch.func``. Otherwise, and with other
    backends, the ops run one by one.

    Args:
        x (Tensor): (B, L, D), the residual stream.
        weights (BlockWeights): Parameters of the block.
        eps (float): Added to the mean of the squares by the normalisation. Defaults to 1e-5.
        scale (float): As in :func:`vim_inner`. Defaults to 0.5.
        backend (str): See :func:`mmvim_ops.available_backends`. Defaults to 'auto'.

    Returns:
        (B, L, D) in the dtype of ``x``.

    Raises:
        TypeError, ValueError, RuntimeError: As :func:`selective_scan`.
    """
    check_tuple('weights', weights, BlockWeights)
    check_tuple('weights.forward', weights.forward, MixerWeights)
    check_tuple('weights.reverse', weights.reverse, MixerWeights)
    check_tensors('x', {'x': x, **weights.named()})
    check_sizes('x', x, '(B, L, D)')
    weights.check(x.shape[2])
    check_eps(eps)
    check_scale(scale)

    states, rank = weights.forward.A.shape[1], weights.forward.dt_weight.shape[1]
    return select(backend, x.device, x.dtype, states, rank).vim_block(x, weights, eps, scale)
