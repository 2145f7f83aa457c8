"""The compiled kernels on views: parts of wider tensors, other layouts, strides of 0 and 2^31."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from mmvim_ops_by_name import bidirectional
from torch import Tensor

import mmvim_ops

Inputs = Callable[..., dict[str, Tensor]]
Layout = Callable[[Tensor], Tensor]
scan = partial(mmvim_ops.selective_scan, delta_softplus=True)


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


@pytest.mark.usefixtures('deterministic')
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_same_bits_as_of_a_copy(
    layout: Layout,
    dtype: torch.dtype,
    scan_inputs: Inputs,
    bidirectional_inputs: Inputs,
    each_kernels: Iterator[Any],
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
        (mmvim_ops.bi_conv1d_silu, conv),
    ]
    for kernels in each_kernels:
        for function, inputs in cases:
            if 'u' in inputs and inputs['B'].shape[2] > 1:
                function = partial(function, groups=inputs['B'].shape[2])
            assert_same_bits(function, inputs, layout, kernels)


def assert_same_bits(
    function: Callable[..., Any], inputs: dict[str, Tensor], layout: Layout, kernels: Any
) -> None:
    results = []
    for change in (Tensor.contiguous, layout):
        given = kernels.place(inputs)
        leaves = {n: change(t.detach()).requires_grad_() for n, t in given.items()}
        outs = function(**leaves, backend=kernels.backend)
        outs = outs if isinstance(outs, tuple) else (outs,)
        weight = next(iter(given.values()))
        grads = torch.autograd.grad(outs, tuple(leaves.values()), [change(weight)] * len(outs))
        results.append((*outs, *grads))
    for plain, viewed in zip(*results):
        assert viewed.shape == plain.shape and viewed.dtype == plain.dtype
        assert torch.equal(viewed, plain), kernels.name


@pytest.mark.usefixtures('deterministic')
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('offset', [1, 2, 4, 8])
def test_alignments(
    offset: int,
    dtype: torch.dtype,
    scan_inputs: Inputs,
    bidirectional_inputs: Inputs,
    each_kernels: Iterator[Any],
) -> None:
    """Rows that begin at any multiple of an element, and are copied in parts of any size."""
    shape = dict(B=2, L=37, E=72, N=16, dtype=dtype)
    cases = (scan, scan_inputs(**shape)), (bidirectional, bidirectional_inputs(R=8, **shape))

    def shifted(tensor: Tensor) -> Tensor:
        edge = torch.full_like(tensor[..., :offset], float('nan'))
        return torch.cat((edge, tensor, edge), dim=-1)[..., offset:-offset]

    for kernels in each_kernels:
        for function, inputs in cases:
            assert_same_bits(function, inputs, shifted, kernels)


@pytest.mark.usefixtures('deterministic')
def test_expanded_inputs(
    scan_inputs: Inputs, bidirectional_inputs: Inputs, each_kernels: Iterator[Any]
) -> None:
    """Strides of 0 over sequences, tokens and channels; the gradient of a sum is one, too."""
    shape = dict(B=3, L=70, E=21, N=5, dtype=torch.float32)
    for kernels in each_kernels:
        for function, inputs in (
            (scan, scan_inputs(**shape)),
            (bidirectional, bidirectional_inputs(**shape)),
        ):
            for dim in range(3):
                results = []
                for copy in (False, True):
                    leaves = {}
                    for name, t in kernels.place(inputs).items():
                        view = t.narrow(dim, 0, 1).expand_as(t) if t.dim() > 2 else t
                        leaves[name] = (view.contiguous() if copy else view).requires_grad_()
                    out = function(**leaves, backend=kernels.backend)
                    results.append((out, *torch.autograd.grad(out.sum(), tuple(leaves.values()))))
                assert all(map(torch.equal, *results)), (kernels.name, dim)


def copies_in(function: Callable[..., object], *args: Any, **options: Any) -> int:
    """How many times torch was asked to copy a tensor."""
    with torch.profiler.profile() as profile:
        function(*args, **options)
    return sum(event.name in ('aten::clone', 'aten::copy_') for event in profile.events())


@torch.no_grad()
def test_parts_of_wider_tensors_are_read_where_they_lie(
    bidirectional_inputs: Inputs, each_kernels: Iterator[Any]
) -> None:
    """What a mixer has: x and z as halves of xz, dbl as columns of one product."""
    for kernels in each_kernels:
        both = partial(bidirectional, backend=kernels.backend)
        conv = partial(mmvim_ops.bi_conv1d_silu, backend=kernels.backend)
        weight = torch.randn(24, 4, device=kernels.device)
        for dtype in (torch.float32, torch.bfloat16):
            p = kernels.place(bidirectional_inputs(L=70, E=24, dtype=dtype))
            p['x_f'], p['z'] = torch.cat((p['x_f'], p['z']), dim=-1).chunk(2, dim=-1)
            p['dbl_f'], p['dbl_b'] = torch.cat((p['dbl_f'], p['dbl_b']), dim=-1).chunk(2, dim=-1)
            assert not p['z'].is_contiguous() and not p['dbl_b'].is_contiguous()
            assert copies_in(both, **p) == 0, kernels.name
            assert copies_in(conv, p['x_f'], weight, None, weight, None) == 0, kernels.name
            # The measure sees a copy where one has to be made.
            p['x_b'] = channels_first(p['x_b'])
            assert copies_in(both, **p) > 0


def far_apart(tensor: Tensor, stride: int) -> Tensor:
    """The tensor (1, L, columns), its tokens ``stride`` elements apart.

    What lies between them is never touched and costs address space, no memory.
    """
    length, columns = tensor.shape[1:]
    size = ((length - 1) * stride + columns) * tensor.element_size()
    storage = torch.UntypedStorage(size, device=tensor.device)
    strides = (length * stride, stride, 1)
    view = tensor.new_empty(0).set_(storage, 0, (1, length, columns), strides)
    return view.copy_(tensor)


@pytest.mark.slow
@pytest.mark.usefixtures('deterministic')
@pytest.mark.parametrize('name', ['u', 'delta', 'B', 'z', 'x_f', 'dbl_b', 'x'])
def test_offsets_beyond_31_bits(
    name: str, scan_inputs: Inputs, bidirectional_inputs: Inputs, each_kernels: Iterator[Any]
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
            (mmvim_ops.conv1d_silu, conv),
        )
        if name in inputs
    )
    for kernels in each_kernels:
        near = kernels.place(inputs)
        far = near | {name: far_apart(near[name], 2**31 // 2 + 77)}
        results = []
        for given in (near, far):
            leaves = {n: t.detach().requires_grad_() for n, t in given.items()}
            out = function(**leaves, backend=kernels.backend)
            others = [leaf for n, leaf in leaves.items() if n != name]
            # Not the gradient of the far one itself: autograd would give it the same strides.
            results.append((out, *torch.autograd.grad(out.float().square().sum(), others)))
        assert all(map(torch.equal, *results)), kernels.name


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
    scan_here = partial(scan, backend='cpu')
    out = scan_here(u, u, -torch.ones(E, 1), ones, ones, z=u)
    # A state that forgets is what the last of a thousand tokens have of it.
    settled = scan_here(
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
