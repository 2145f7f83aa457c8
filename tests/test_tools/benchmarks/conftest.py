"""The benchmark scripts import their shared modules from the folder they lie in; and stand-ins for
what only a GPU has: the compiled modules of causal-conv1d and mamba-ssm.
"""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmvim_ops import reference

sys.path.insert(0, str(Path(__file__).parents[3] / 'tools' / 'analysis_tools'))


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    padded = F.pad(x, (weight.shape[1] - 1, 0))
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    return F.silu(F.conv1d(padded, weight.unsqueeze(1), bias, groups=x.shape[1]))


def causal_conv1d_fwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    seq_idx: None,
    initial_states: None,
    out: Tensor,
    final_states_out: None,
    silu_activation: bool,
) -> None:
    """As in causal-conv1d 1.7.0; the kernel reads any strides with adjacent tokens."""
    assert seq_idx is initial_states is final_states_out is None and silu_activation
    assert x.stride(2) == out.stride(2) == 1 and weight.dtype == bias.dtype
    out.copy_(convolve(x, weight, bias))


def causal_conv1d_bwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    dout: Tensor,
    seq_idx: None,
    initial_states: None,
    dfinal_states: None,
    dx: Tensor,
    dweight: Tensor,
    dbias: Tensor,
    dinitial_states: None,
    silu_activation: bool,
) -> None:
    assert seq_idx is initial_states is dfinal_states is dinitial_states is None
    assert silu_activation and dx.stride(2) == 1
    assert dweight.dtype == dbias.dtype == torch.float32
    leaves = [tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
    with torch.enable_grad():
        grads = torch.autograd.grad(convolve(*leaves), leaves, dout)
    dx.copy_(grads[0])
    dweight.add_(grads[1])
    dbias.add_(grads[2])


def scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor
) -> Tensor:
    """(B, E, L), before the gate."""
    rows = (tensor.transpose(1, 2) for tensor in (u, delta))
    matrices = (tensor.squeeze(1).transpose(1, 2) for tensor in (B, C))
    y = reference.selective_scan(*rows, A, *matrices, D, None, bias, True)
    assert isinstance(y, Tensor)
    return y.transpose(1, 2)


def check_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, z: Tensor) -> None:
    """What mamba-ssm 2.3.2 checks before it launches a kernel."""
    batch, _, length = u.shape
    assert u.dtype == delta.dtype == B.dtype == C.dtype == z.dtype
    assert B.shape == C.shape == (batch, 1, A.shape[1], length)
    assert all(tensor.stride(-1) == 1 for tensor in (u, delta, B, C, z))


def selective_scan_fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    delta_softplus: bool,
) -> list[Tensor]:
    check_scan(u, delta, A, B, C, z)
    assert delta_softplus
    y = scan(u, delta, A, B, C, D, delta_bias)
    out, gated = torch.empty_like(delta).copy_(y), torch.empty_like(z).copy_(y * F.silu(z))
    chunks = -(-u.shape[2] // 2048)
    return [out, A.new_empty(*u.shape[:2], chunks, 2 * A.shape[1]), gated]


def selective_scan_bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    dout: Tensor,
    x: Tensor,
    out: Tensor,
    dz: Tensor,
    delta_softplus: bool,
    recompute_out_z: bool,
) -> list[Tensor]:
    check_scan(u, delta, A, B, C, z)
    assert delta_softplus and x.is_contiguous() and dout.dtype == out.dtype == u.dtype
    assert dout.stride(-1) == out.stride(-1) == dz.stride(-1) == 1
    leaves = [tensor.detach().requires_grad_() for tensor in (u, delta, A, B, C, D, delta_bias, z)]
    with torch.enable_grad():
        gated = scan(*leaves[:-1]) * F.silu(leaves[-1])
        grads = list(torch.autograd.grad(gated, leaves, dout))
    dz.copy_(grads.pop())
    du, ddelta = (torch.empty_like(t).copy_(g) for t, g in zip((u, delta), grads))
    return [du, ddelta, *grads[2:], dz, *([gated.detach()] if recompute_out_z else [])]


@pytest.fixture
def published_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for both compiled modules, with their arguments, layouts and checks, on the CPU."""
    convolution, scans = ModuleType('causal_conv1d_cuda'), ModuleType('selective_scan_cuda')
    vars(convolution).update(
        causal_conv1d_fwd=causal_conv1d_fwd, causal_conv1d_bwd=causal_conv1d_bwd
    )
    vars(scans).update(fwd=selective_scan_fwd, bwd=selective_scan_bwd)
    for module in (convolution, scans):
        monkeypatch.setitem(sys.modules, module.__name__, module)
