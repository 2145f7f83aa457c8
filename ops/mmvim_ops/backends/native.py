"""The ops on compiled kernels: one pass over the inputs, everything fused, nothing flipped.

The kernels themselves are under ``csrc``; :mod:`mmvim_ops.loading` loads them and
:mod:`mmvim_ops.library` declares their operators.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    'add_rms_norm',
    'bi_conv1d_silu',
    'bidirectional_selective_scan',
    'conv1d_silu',
    'selective_scan',
]


class _Kernels(NamedTuple):
    """What the kernels of a device want.

    Attributes:
        operators: Namespace of the operators.
        chunk: Tokens between two states saved for a backward pass; without one, none is saved but
            the first. A shorter chunk saves more, a longer one takes more fast memory (the cache of
            a CPU, a block's shared memory on a GPU) when the backward pass rebuilds its states.
        widens_half: float16 has no kernels and becomes float32.
    """

    operators: Any
    chunk: int
    widens_half: bool

    def readable(self, tensor: Tensor | None) -> Tensor | None:
        """A tensor in a dtype that the kernels read."""
        half = self.widens_half and tensor is not None and tensor.dtype == torch.float16
        return tensor.float() if half and tensor is not None else tensor


_KERNELS = {
    'cpu': _Kernels(torch.ops.mmvim, chunk=64, widens_half=True),
    'cuda': _Kernels(torch.ops.mmvim, chunk=128, widens_half=False),
    # Nothing runs there, and operations are counted (mmvim_ops.flops).
    'meta': _Kernels(torch.ops.mmvim, chunk=128, widens_half=False),
}


def _differentiates(*inputs: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in inputs
    )


def _call(operator: Any, needs_grad: bool, *arguments: Any) -> Any:
    """Call an operator, past its autograd rule where there is nothing to differentiate.

    The rule is Python that looks at every argument: a third of the time of a small call.
    """
    if needs_grad or torch.compiler.is_compiling():
        return operator(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


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
    kernels = _KERNELS[u.device.type]
    tensors = (u, delta, A, B, C, D, z, delta_bias)
    needs_grad = _differentiates(*tensors)
    out, last_state, _ = _call(
        kernels.operators.selective_scan.default,
        needs_grad,
        *map(kernels.readable, tensors),
        *(delta_softplus, reverse, groups, kernels.chunk if needs_grad else u.shape[1]),
    )
    out = out.to(u.dtype)
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
    kernels = _KERNELS[x_f.device.type]
    tensors = (
        *(x_f, x_b, dbl_f, dbl_b, dt_w_f, dt_w_b, dt_b_f, dt_b_b),
        *(A_f, A_b, D_f, D_b, z),
    )
    needs_grad = _differentiates(*tensors)
    out: Tensor = _call(
        kernels.operators.bidirectional_selective_scan.default,
        needs_grad,
        *map(kernels.readable, tensors),
        *(scale, False, kernels.chunk if needs_grad else x_f.shape[1]),
    )[0]
    return out.to(x_f.dtype)


def conv1d_silu(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, reverse: bool = False
) -> Tensor:
    """See :func:`mmvim_ops.functional.conv1d_silu`."""
    kernels = _KERNELS[x.device.type]
    tensors = (x, weight, bias)
    out: Tensor = _call(
        kernels.operators.conv1d_silu.default,
        _differentiates(*tensors),
        *map(kernels.readable, tensors),
        reverse,
    )
    return out.to(x.dtype)


def bi_conv1d_silu(
    x: Tensor, w_f: Tensor, b_f: Tensor | None, w_b: Tensor, b_b: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See :func:`mmvim_ops.functional.bi_conv1d_silu`."""
    kernels = _KERNELS[x.device.type]
    tensors = (x, w_f, b_f, w_b, b_b)
    x_f, x_b = _call(
        kernels.operators.bi_conv1d_silu.default,
        _differentiates(*tensors),
        *map(kernels.readable, tensors),
    )
    return x_f.to(x.dtype), x_b.to(x.dtype)


def add_rms_norm(x: Tensor, added: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See :func:`mmvim_ops.functional.add_rms_norm`."""
    kernels = _KERNELS[x.device.type]
    tensors = (x, added, weight)
    normed, total, _ = _call(
        kernels.operators.add_rms_norm.default,
        _differentiates(*tensors),
        *map(kernels.readable, tensors),
        float(eps),
    )
    return normed.to(weight.dtype), total.to(x.dtype)
