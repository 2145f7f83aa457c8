"""The kernels of both scans: how their inputs and outputs meet those of one direction.

The operators are declared in :mod:`mmvim_ops.library`, which has their arguments.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmvim_ops.precision import full_precision
from mmvim_ops.scan_inputs import ScanInputs, SelectiveInputs, directions
from mmvim_ops.triton_kernels.device import wanted
from mmvim_ops.triton_kernels.scan_direction import Direction, scan, scan_backward

__all__ = [
    'bidirectional_selective_scan',
    'bidirectional_selective_scan_backward',
    'selective_scan',
    'selective_scan_backward',
]

# The largest dt rank whose weights a thread holds in registers; beyond it, dt_proj is a product of
# matrices (not measured).
_FUSED_RANK = 16


def _selective(inputs: SelectiveInputs, softplus: bool, reverse: bool, groups: int) -> Direction:
    u, delta, A, B, C, D, _, bias = inputs
    dbl = torch.cat((B, C), dim=-1).float()
    return Direction(u, dbl, delta, None, bias, A, D, softplus, reverse, groups)


def _checkpoints(u: Tensor, states: int, groups: int, width: int, chunk: int) -> Tensor:
    """Room for the states before every chunk."""
    batch, length, _ = u.shape
    shape = (-(-length // chunk), batch, groups, states, width)
    return torch.empty(shape, dtype=torch.float32, device=u.device)


def selective_scan(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel of ``selective_scan``."""
    inputs, (softplus, reverse, groups, chunk) = SelectiveInputs(*args[:8]), args[8:]
    u, A = inputs.u, inputs.A
    out = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    last_state = torch.empty((u.shape[0], *A.shape), dtype=torch.float32, device=u.device)
    checkpoints = _checkpoints(u, A.shape[1], groups, u.shape[2] // groups, chunk)
    given = _selective(inputs, softplus, reverse, groups)
    scan(given, inputs.z, None, 1.0, out, checkpoints, chunk, last_state)
    return out, last_state, checkpoints


def selective_scan_backward(*args: Any) -> tuple[Tensor, ...]:
    """The kernel of ``selective_scan_backward``."""
    grad_out, grad_last_state, *tensors = args[:10]
    checkpoints, (softplus, reverse, groups, chunk), needs = args[10], args[11:15], args[15]
    inputs = SelectiveInputs(*tensors)
    u, z = inputs.u, inputs.z
    grad_z = None
    if z is not None and needs[6]:
        grad_z = torch.empty(u.shape, dtype=z.dtype, device=u.device)
    found = scan_backward(
        _selective(inputs, softplus, reverse, groups),
        *(grad_out, z, 1.0, checkpoints, chunk),
        arriving=grad_last_state,
        grad_z=grad_z,
    )
    return wanted((*found[:6], grad_z, found.bias), inputs, needs)


def _one(given: ScanInputs, reverse: bool) -> Direction:
    """One direction of a bidirectional scan, dt projected where the kernel does not."""
    dbl, rank = given.dbl.float(), given.dt_weight.shape[1]
    weight: Tensor | None = given.dt_weight
    delta = None
    if rank > _FUSED_RANK:
        delta, weight = F.linear(dbl[..., :rank], given.dt_weight.float()), None
        dbl = dbl[..., rank:]
    A, D, dbl = given.A, given.D, dbl.unsqueeze(2)
    return Direction(given.x, dbl, delta, weight, given.dt_bias, A, D, True, reverse, groups=1)


def bidirectional_selective_scan(*args: Any) -> tuple[Tensor, Tensor]:
    """The kernel of ``bidirectional_selective_scan``.

    The second scan adds what the first has left in float32, gates and scales.
    """
    forward, reverse = directions(args[:12])
    z, scale, wide_out, chunk = args[12:]
    x, states = forward.x, forward.A.shape[1]
    both = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    out = both if wide_out else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    checkpoints = _checkpoints(x, states, 2, x.shape[2], chunk)
    with full_precision(x.device):
        scan(_one(forward, False), None, None, 1.0, both, checkpoints[:, :, :1], chunk)
        scan(_one(reverse, True), z, both, scale, out, checkpoints[:, :, 1:], chunk)
    return out, checkpoints


def bidirectional_selective_scan_backward(*args: Any) -> tuple[Tensor, ...]:
    """The kernel of ``bidirectional_selective_scan_backward``."""
    grad_out, inputs, (checkpoints, scale, chunk), needs = (
        args[0],
        args[1:14],
        args[14:17],
        args[17],
    )
    forward, reverse = directions(args[1:13])
    x, z = forward.x, inputs[12]
    grad_z = y = None
    if z is not None and needs[12]:
        grad_z = torch.empty(x.shape, dtype=z.dtype, device=x.device)
        y = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    grads: list[tuple[Tensor, ...]] = []
    with full_precision(x.device):
        for d, given in enumerate((forward, reverse)):
            found = scan_backward(
                _one(given, d == 1),
                *(grad_out, z, scale, checkpoints[:, :, d : d + 1], chunk),
                partial=y if d else None,
                grad_z=grad_z if d else None,
                y_out=None if d else y,
            )
            grad_delta, rank = found.delta, given.dt_weight.shape[1]
            grad_dt = grad_delta @ given.dt_weight.float()
            grad_dbl = torch.cat((grad_dt, found.B.squeeze(2), found.C.squeeze(2)), dim=-1)
            dt = given.dbl[..., :rank].float()
            grad_weight = grad_delta.flatten(0, 1).t() @ dt.flatten(0, 1)
            grads.append((found.u, grad_dbl, grad_weight, found.bias, found.A, found.D))
            del found, grad_delta  # (B, L, E) in float32, before the other direction makes its own
    both = [grad for pair in zip(*grads) for grad in pair]
    return wanted((*both, grad_z), inputs, needs)
