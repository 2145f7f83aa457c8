"""Shape rules promise a compiler the very strides that kernels give, whatever the inputs'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from mmvim_ops import library
from mmvim_ops.differentiation import Operator

Inputs = Callable[..., dict[str, Tensor]]
SIZES = [(2, 70, 6, 4, 3), (1, 5, 5, 1, 2), (3, 1, 6, 16, 1), (1, 1, 1, 1, 1)]  # B, L, E, N, R


def plain(tensor: Tensor) -> Tensor:
    return tensor


def part_of_wider(tensor: Tensor) -> Tensor:
    return torch.cat((tensor, tensor), dim=-1)[..., : tensor.shape[-1]]


def channels_first(tensor: Tensor) -> Tensor:
    return tensor.movedim(-1, 0).contiguous().movedim(0, -1)


def tokens_first(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1).contiguous().transpose(0, 1) if tensor.dim() > 1 else tensor


def expanded(tensor: Tensor) -> Tensor:
    return tensor[:1].expand_as(tensor)


LAYOUTS = [plain, part_of_wider, channels_first, tokens_first, expanded]


def run(operator: Operator, *args: Any) -> tuple[Tensor, ...]:
    """The results of an operator, once its shape rule gave the same sizes, strides and dtypes."""
    outs = operator.overload(*args)
    with FakeTensorMode() as mode:
        fakes = operator.overload(
            *(mode.from_tensor(arg) if isinstance(arg, Tensor) else arg for arg in args)
        )
    outs, fakes = ((r,) if isinstance(r, Tensor) else tuple(r) for r in (outs, fakes))
    for index, (out, fake) in enumerate(zip(outs, fakes)):
        found, promised = (
            (tuple(t.shape), t.stride(), t.dtype, t.device.type) for t in (out, fake)
        )
        assert found == promised, (operator.overload, index)
    return tuple(outs)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('family', [library.COMPILED, library.PURE_TORCH], ids=['compiled', 'pure'])
def test_every_operator(
    family: library.Family,
    dtype: torch.dtype,
    layout: Callable[[Tensor], Tensor],
    scan_inputs: Inputs,
    bidirectional_inputs: Inputs,
) -> None:
    for B, L, E, N, R in SIZES:
        both = [layout(t) for t in bidirectional_inputs(B, L, E, N, R, dtype=dtype).values()]
        for gate, wide_out in ((both[-1], False), (None, True)):
            tensors = (*both[:-1], gate)
            scan = family.bidirectional_selective_scan
            out, checkpoints = run(scan, *tensors, 0.5, wide_out, 64)
            for needs in ([True] * 13, [True, False] * 6 + [False]):
                saved = (checkpoints, 0.5, 64, needs, True)
                backward = family.bidirectional_selective_scan_backward
                run(backward, layout(out), *tensors, *saved)

        p = scan_inputs(B, L, E, N, dtype=dtype)
        names = ('u', 'delta', 'A', 'B', 'C', 'D', 'z', 'delta_bias')
        one = [layout(p[name]) for name in names]
        options = (True, True, 1, 64)
        out, state, checkpoints = run(family.selective_scan, *one, *options)
        grads, saved = (layout(out), layout(state)), (checkpoints, *options, [True] * 8, True)
        run(family.selective_scan_backward, *grads, *one, *saved)

        x, weight, bias = one[0], layout(p['A']), layout(p['D'])
        (out,) = run(family.conv1d_silu, x, weight, bias, True)
        run(family.conv1d_silu_backward, layout(out), x, weight, bias, True, [True] * 3)
        pair = (x, weight, bias, weight, None)
        outs = map(layout, run(family.bi_conv1d_silu, *pair))
        run(family.bi_conv1d_silu_backward, *outs, *pair, [True, True, True, False, False])

        stream = layout(p['u'].float())
        normed, total, scales = run(family.add_rms_norm, stream, x, bias, 1e-5)
        for grad_total in (layout(total), None):
            grads = (layout(normed), grad_total)
            run(family.add_rms_norm_backward, *grads, layout(total), layout(scales), bias)
