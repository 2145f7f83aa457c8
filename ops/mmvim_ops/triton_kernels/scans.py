"""The kernels of both scans: how their inputs and outputs meet those of one direction.

The operators are declared in :mod:`mmvim_ops.library`, which has their arguments.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmvim_ops.precision import full_precision
from mmvim_ops.scan_inputs import ScanInputs, SelectiveInputs, directions
from mmvim_ops.triton_kernels.device import Rows, guard, rows, warp
from mmvim_ops.triton_kernels.scan_backward import scan_backward_kernel
from mmvim_ops.triton_kernels.scan_forward import scan_forward_kernel

__all__ = [
    'bidirectional_backward',
    'bidirectional_forward',
    'selective_backward',
    'selective_forward',
]

# The largest dt rank whose weights a thread holds in registers; beyond it, dt_proj is a product of
# matrices (not measured).
_FUSED_RANK = 16
# Tokens whose states a thread of the backward pass holds in registers.
_HELD = 2


class _Direction(NamedTuple):
    """What one scan reads: as :class:`SelectiveInputs`, or dt before its projection."""

    u: Tensor
    delta: Tensor  # (B, L, E), or (B, L, R) with a weight
    weight: Tensor | None  # (E, R)
    bias: Tensor | None
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    softplus: bool
    reverse: bool
    groups: int

    def sizes(self, chunk: int) -> dict[str, Any]:
        """What both kernels are told about the shapes."""
        batches, length, channels = self.u.shape
        return dict(
            batches=batches,
            length=length,
            groups=self.groups,
            width=channels // self.groups,
            chunk=min(chunk, length),
            segment_length=length,
            N=self.A.shape[1],
            RANK=0 if self.weight is None else self.weight.shape[1],
            SOFTPLUS=self.softplus,
            REVERSE=self.reverse,
        )

    def tensors(self) -> dict[str, Any]:
        """What both kernels read."""
        parameters = dict(weight=self.weight, bias=self.bias, A=self.A, D=self.D)
        found = {name: t if t is None else t.contiguous() for name, t in parameters.items()}
        return found | {name: rows(getattr(self, name)) for name in ('u', 'delta', 'B', 'C')}


class _Gradients(NamedTuple):
    """Of a direction's inputs; all but that of u in float32, that of delta before projection."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    bias: Tensor


def _saved(checkpoints: Tensor) -> Rows:
    """(chunks, B, G, N, E / G), as kernels take them."""
    chunk, batch, group = checkpoints.stride()[:3]
    return Rows(checkpoints, batch, chunk, group)


def _forward(
    given: _Direction,
    z: Tensor | None,
    partial: Tensor | None,
    scale: float,
    out: Tensor,
    checkpoints: Tensor,
    chunk: int,
    last_state: Tensor | None = None,
) -> None:
    """Run a direction into ``out``, ``checkpoints`` and ``last_state``."""
    sizes = given.sizes(chunk)
    block = warp()
    blocks = -(-sizes['width'] // block)
    if len(checkpoints) == 1:  # the state before the first token
        checkpoints.zero_()
    with guard(out.device):
        scan_forward_kernel[blocks * given.groups * sizes['batches'],](
            z=None if z is None else rows(z),
            partial=partial,
            arriving=None,
            out=out,
            last_state=last_state,
            checkpoints=None if len(checkpoints) == 1 else _saved(checkpoints),
            scale=scale,
            BLOCK=block,
            num_warps=1,
            **given.tensors(),
            **sizes,
        )


def _backward(
    given: _Direction,
    grad_out: Tensor,
    z: Tensor | None,
    scale: float,
    checkpoints: Tensor,
    chunk: int,
    arriving: Tensor | None = None,
    partial: Tensor | None = None,
    grad_z: Tensor | None = None,
    y_out: Tensor | None = None,
) -> _Gradients:
    """Run a direction backwards.

    Args:
        given (_Direction): What it read.
        grad_out (Tensor): (B, L, E).
        z (Tensor | None): (B, L, E), the gate.
        scale (float): The factor of the output.
        checkpoints (Tensor): (chunks, B, G, N, E / G), which it saved.
        chunk (int): Tokens between them.
        arriving (Tensor | None): (B, E, N), the gradient of the last state. Defaults to None: zero.
        partial (Tensor | None): (B, L, E), float32: what another direction adds to ``C h + D u``.
            Defaults to None: nothing.
        grad_z (Tensor | None): (B, L, E), takes the gradient of z. Defaults to None: not wanted.
        y_out (Tensor | None): (B, L, E), float32: takes ``C h + D u``. Defaults to None.
    """
    sizes = given.sizes(chunk)
    batches, length, groups, N = (sizes[name] for name in ('batches', 'length', 'groups', 'N'))
    block = warp()
    blocks = -(-sizes['width'] // block)
    programs = blocks * groups * batches
    channels = given.u.shape[2]

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=given.u.device)

    if arriving is not None:
        arriving = arriving.float().transpose(1, 2).contiguous()
    grad_u = empty(*given.u.shape, dtype=given.u.dtype)
    grad_delta = empty(*given.u.shape)
    grad_A = empty(batches, channels, N)
    grad_D, grad_bias = empty(2, batches, channels).unbind(0)
    grad_B, grad_C = empty(2, blocks, batches, length, groups, N).unbind(0)
    scratch = empty(programs, -(-sizes['chunk'] // _HELD), N, block)
    with guard(grad_u.device):
        scan_backward_kernel[programs,](
            grad_out=rows(grad_out),
            z=None if z is None else rows(z),
            partial=partial,
            arriving=arriving,
            checkpoints=_saved(checkpoints),
            scratch=scratch,
            grad_u=grad_u,
            grad_delta=grad_delta,
            grad_A=grad_A,
            grad_B=grad_B,
            grad_C=grad_C,
            grad_D=grad_D,
            grad_bias=grad_bias,
            grad_z=grad_z,
            y_out=y_out,
            scale=scale,
            STATES=1 << (N - 1).bit_length(),
            BLOCK=block,
            HELD=_HELD,
            num_warps=1,
            **given.tensors(),
            **sizes,
        )
    return _Gradients(
        grad_u,
        grad_delta,
        *(part.sum(0) for part in (grad_A, grad_B, grad_C, grad_D, grad_bias)),
    )


def _wanted(
    grads: dict[int, Tensor], inputs: tuple[Any, ...], needs: list[bool]
) -> tuple[Tensor, ...]:
    """The gradient of every input in its dtype, empty where it is not needed."""
    lead: Tensor = inputs[0]
    return tuple(
        grads[index].to(given.dtype) if need and given is not None else lead.new_empty(0)
        for index, (given, need) in enumerate(zip(inputs, needs))
    )


def _selective(inputs: SelectiveInputs, softplus: bool, reverse: bool, groups: int) -> _Direction:
    u, delta, A, B, C, D, _, bias = inputs
    return _Direction(u, delta, None, bias, A, B, C, D, softplus, reverse, groups)


def _checkpoints(u: Tensor, states: int, groups: int, width: int, chunk: int) -> Tensor:
    """Room for the states before every chunk."""
    batch, length, _ = u.shape
    shape = (-(-length // chunk), batch, groups, states, width)
    return torch.empty(shape, dtype=torch.float32, device=u.device)


def selective_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel of ``selective_scan``."""
    inputs, (softplus, reverse, groups, chunk) = SelectiveInputs(*args[:8]), args[8:]
    u, A = inputs.u, inputs.A
    out = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    last_state = torch.empty((u.shape[0], *A.shape), dtype=torch.float32, device=u.device)
    checkpoints = _checkpoints(u, A.shape[1], groups, u.shape[2] // groups, chunk)
    given = _selective(inputs, softplus, reverse, groups)
    _forward(given, inputs.z, None, 1.0, out, checkpoints, chunk, last_state)
    return out, last_state, checkpoints


def selective_backward(*args: Any) -> tuple[Tensor, ...]:
    """The kernel of ``selective_scan_backward``."""
    grad_out, grad_last_state, *tensors = args[:10]
    checkpoints, (softplus, reverse, groups, chunk), needs = args[10], args[11:15], args[15]
    inputs = SelectiveInputs(*tensors)
    u, z = inputs.u, inputs.z
    grad_z = None
    if z is not None and needs[6]:
        grad_z = torch.empty(u.shape, dtype=z.dtype, device=u.device)
    found = _backward(
        _selective(inputs, softplus, reverse, groups),
        *(grad_out, z, 1.0, checkpoints, chunk),
        arriving=grad_last_state,
        grad_z=grad_z,
    )
    grads = {index: grad for index, grad in zip((0, 1, 2, 3, 4, 5, 7), found)}
    if grad_z is not None:
        grads[6] = grad_z
    return _wanted(grads, inputs, needs)


def _one(given: ScanInputs, reverse: bool) -> _Direction:
    """One direction of a bidirectional scan, dt projected where the kernel does not."""
    states, rank = given.A.shape[1], given.dt_weight.shape[1]
    dt, B, C = (part for part in given.dbl.split((rank, states, states), dim=-1))
    weight: Tensor | None = given.dt_weight
    if rank > _FUSED_RANK:
        dt, weight = F.linear(dt.float(), given.dt_weight.float()), None
    B, C = B.unsqueeze(2), C.unsqueeze(2)
    return _Direction(
        given.x, dt, weight, given.dt_bias, given.A, B, C, given.D, True, reverse, groups=1
    )


def bidirectional_forward(*args: Any) -> tuple[Tensor, Tensor]:
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
        _forward(_one(forward, False), None, None, 1.0, both, checkpoints[:, :, :1], chunk)
        _forward(_one(reverse, True), z, both, scale, out, checkpoints[:, :, 1:], chunk)
    return out, checkpoints


def bidirectional_backward(*args: Any) -> tuple[Tensor, ...]:
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
    grads: dict[int, Tensor] = {} if grad_z is None else {12: grad_z}
    with full_precision(x.device):
        for d, given in enumerate((forward, reverse)):
            found = _backward(
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
            grads |= {
                2 * index + d: grad
                for index, grad in enumerate(
                    (found.u, grad_dbl, grad_weight, found.bias, found.A, found.D)
                )
            }
    return _wanted(grads, inputs, needs)
