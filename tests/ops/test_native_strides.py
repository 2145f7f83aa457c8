"""The compiled kernels on views: parts of wider tensors, other layouts, strides of 0 and 2^31."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import mmvim_ops

Inputs = Callable[..., dict[str, Tensor]]
Layout = Callable[[Tensor], Tensor]
scan = partial(mmvim_ops.selective_scan, delta_softplus=True, backend='cpu')
bidirectional = partial(mmvim_ops.bidirectional_selective_scan, backend='cpu')


def part_of_wider(tensor: Tensor) -> Tensor:
    """Columns in the middle of a tensor whose other columns are no numbers."""
    edge = torch.full_like(tensor[..., :3], float('nan'))
    return torch.cat((edge, tensor, edge), dim=-1)[..., 3:-3]


def every_second_token(tensor: Tensor) -> Tensor:
    wide = torch.full_like(tensor, float('nan')).repeat_interleave(2, dim=min(1, tensor.dim() - 1))
    part = wide[:, 1::2] if tensor.dim() > 1 else wide[1::2]
    return part.copy_(tensor)


def channels_first(tensor: Tensor) -> Tensor:
    """The last stride is not 1."""
    return tensor.movedim(-1, 0).contiguous().movedim(0, -1)


def tokens_first(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1).contiguous().transpose(0, 1) if tensor.dim() > 1 else tensor


LAYOUTS: list[Layout] = [part_of_wider, every_second_token, channels_first, tokens_first]


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_same_bits_as_of_a_copy(
    layout: Layout,
    dtype: torch.dtype,
    scan_inputs: Inputs,
    bidirectional_inputs: Inputs,
    each_isa: Iterator[str],
) -> None:
    """Outputs, gradients and their shapes; all inputs and the gradient of the output as views."""
    shape = dict(B=3, L=70, E=21, N=5, dtype=dtype)
    x = scan_inputs(**shape)['u']
    weight, bias = torch.randn(21, 4), torch.randn(21)
    conv = dict(x=x, w_f=weight, b_f=bias, w_b=weight, b_b=bias)
    cases: list[tuple[Any, dict[str, Tensor]]] = [
        (scan, scan_inputs(groups=3, **shape)),
        (partial(scan, reverse=True), scan_inputs(**shape)),
        (bidirectional, bidirectional_inputs(**shape)),
        (partial(mmvim_ops.bi_conv1d_silu, backend='cpu'), conv),
    ]
    for isa in each_isa:
        for function, inputs in cases:
            if 'u' in inputs and inputs['B'].shape[2] > 1:
                function = partial(function, groups=inputs['B'].shape[2])
            results = []
            for change in (Tensor.contiguous, layout):
                leaves = {n: change(t.detach()).requires_grad_() for n, t in inputs.items()}
                outs = function(**leaves)
                outs = outs if isinstance(outs, tuple) else (outs,)
                grads = torch.autograd.grad(outs, tuple(leaves.values()), [change(x)] * len(outs))
                results.append((*outs, *grads))
            for plain, viewed in zip(*results):
                assert viewed.shape == plain.shape and viewed.dtype == plain.dtype
                assert torch.equal(viewed, plain), isa


def test_expanded_inputs(
    scan_inputs: Inputs, bidirectional_inputs: Inputs, each_isa: Iterator[str]
) -> None:
    """Strides of 0 over sequences, tokens and channels; the gradient of a sum is one, too."""
    shape = dict(B=3, L=70, E=21, N=5, dtype=torch.float32)
    for isa in each_isa:
        for function, inputs in (
            (scan, scan_inputs(**shape)),
            (bidirectional, bidirectional_inputs(**shape)),
        ):
            for dim in range(3):
                results = []
                for copy in (False, True):
                    leaves = {}
                    for name, t in inputs.items():
                        view = t.narrow(dim, 0, 1).expand_as(t) if t.dim() > 2 else t
                        leaves[name] = (view.contiguous() if copy else view).requires_grad_()
                    out = function(**leaves)
                    results.append((out, *torch.autograd.grad(out.sum(), tuple(leaves.values()))))
                assert all(map(torch.equal, *results)), (isa, dim)


def copies_in(function: Callable[..., object], *args: Any, **options: Any) -> int:
    """How many times torch was asked to copy a tensor."""
    with torch.profiler.profile() as profile:
        function(*args, **options)
    return sum(event.name in ('aten::clone', 'aten::copy_') for event in profile.events())


@torch.no_grad()
def test_parts_of_wider_tensors_are_read_where_they_lie(
    bidirectional_inputs: Inputs, each_isa: Iterator[str]
) -> None:
    """What a mixer has: x and z as halves of xz, dbl as columns of one product."""
    conv, weight = partial(mmvim_ops.bi_conv1d_silu, backend='cpu'), torch.randn(24, 4)
    for isa in each_isa:
        for dtype in (torch.float32, torch.bfloat16):
            p = bidirectional_inputs(L=70, E=24, dtype=dtype)
            p['x_f'], p['z'] = torch.cat((p['x_f'], p['z']), dim=-1).chunk(2, dim=-1)
            p['dbl_f'], p['dbl_b'] = torch.cat((p['dbl_f'], p['dbl_b']), dim=-1).chunk(2, dim=-1)
            assert not p['z'].is_contiguous() and not p['dbl_b'].is_contiguous()
            assert copies_in(bidirectional, **p) == 0, isa
            assert copies_in(conv, p['x_f'], weight, None, weight, None) == 0, isa
            # The measure sees a copy where one has to be made.
            p['x_b'] = channels_first(p['x_b'])
            assert copies_in(bidirectional, **p) > 0


def far_apart(tensor: Tensor, stride: int) -> Tensor:
    """The tensor (1, L, columns), its tokens ``stride`` elements apart.

    What lies between them is never touched and costs address space, no memory.
    """
    length, columns = tensor.shape[1:]
    storage = torch.empty((length - 1) * stride + columns, dtype=tensor.dtype)
    view = storage.as_strided((1, length, columns), (length * stride, stride, 1))
    return view.copy_(tensor)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['u', 'delta', 'B', 'z', 'x_f', 'dbl_b', 'x'])
def test_offsets_beyond_31_bits(
    name: str, scan_inputs: Inputs, bidirectional_inputs: Inputs, each_isa: Iterator[str]
) -> None:
    """Element offsets of more than 2^31, with a remainder that a 32-bit index would land on."""
    shape = dict(B=1, L=3, E=21, dtype=torch.bfloat16)
    one = scan_inputs(**shape)
    one['B'], one['C'] = one['B'].squeeze(2), one['C'].squeeze(2)
    conv = dict(x=one['u'], weight=torch.randn(21, 4))
    function, inputs = next(
        (function, inputs)
        for function, inputs in (
            (scan, one),
            (bidirectional, bidirectional_inputs(**shape)),
            (partial(mmvim_ops.conv1d_silu, backend='cpu'), conv),
        )
        if name in inputs
    )
    far = inputs | {name: far_apart(inputs[name], 2**31 // 2 + 77)}
    for isa in each_isa:
        results = []
        for given in (inputs, far):
            leaves = {n: t.detach().requires_grad_() for n, t in given.items()}
            out = function(**leaves)
            others = [leaf for n, leaf in leaves.items() if n != name]
            # Not the gradient of the far one itself: autograd would give it the same strides.
            results.append((out, *torch.autograd.grad(out.float().square().sum(), others)))
        assert all(map(torch.equal, *results)), isa


def free_memory() -> int:
    """Bytes that can be had, as Linux says; none elsewhere."""
    try:
        with open('/proc/meminfo') as lines:
            facts = dict(line.split(':') for line in lines)
        return int(facts['MemAvailable'].split()[0]) * 1024
    except OSError:
        return 0


@pytest.mark.slow
@pytest.mark.skipif(free_memory() < 8 << 30, reason='takes 5 GB of memory')
def test_more_than_2_31_elements() -> None:
    """Every element of the output is right, beyond 2^31 as before: all inputs are constant."""
    E = 96
    L = 2**31 // E + 1000
    token = torch.linspace(-1, 1, E).bfloat16()
    u = token.expand(1, L, E)
    ones = torch.ones(1, dtype=torch.bfloat16).expand(1, L, 1)
    assert u.numel() > 2**31
    out = scan(u, u, -torch.ones(E, 1), ones, ones, z=u)
    # A state that forgets is what the last of a thousand tokens have of it.
    settled = scan(
        u[:, :1000], u[:, :1000], -torch.ones(E, 1), *(ones[:, :1000],) * 2, z=u[:, :1000]
    )
    for first in range(1000, L, 1 << 20):
        some = out[0, first : first + (1 << 20)]
        assert torch.equal(some, settled[0, -1:].expand_as(some)), first
    del out, some
    out = mmvim_ops.conv1d_silu(u, torch.ones(E, 4), backend='cpu')
    for first in range(3, L, 1 << 20):
        some = out[0, first : first + (1 << 20)]
        assert torch.equal(some, out[0, 3:4].expand_as(some)), first
