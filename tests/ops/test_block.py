"""A whole Vim block: values, when it is one operator, what it does with weights and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from mmvim_ops_by_name import needs_native
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import mmvim_ops
from mmvim_ops import BlockWeights, MixerWeights

# B, L, D, E, N, R, W: tiles that are full, begun and of one token; channels and outputs that fill
# no vector; convolutions that reach over several tiles; inputs taken in parts.
SIZES = [
    (1, 197, 192, 384, 16, 12, 4),
    (3, 66, 20, 36, 5, 3, 4),
    (2, 1, 8, 16, 16, 1, 4),
    (2, 64, 33, 61, 1, 7, 1),
    (1, 129, 300, 40, 2, 4, 9),
    (2, 190, 12, 20, 3, 4, 90),
    (1, 97, 16, 520, 1, 1, 4),
]


def make(
    D: int, E: int, N: int, R: int, W: int, bare: bool = False, dtype: torch.dtype = torch.float32
) -> BlockWeights:
    """Seeded weights; ``bare`` ones have nothing that may be absent."""
    generator = torch.Generator().manual_seed(D + E + N)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=generator)).to(dtype)

    def side() -> MixerWeights:
        conv = draw(E, W, scale=0.5), None if bare else draw(E)
        dt = draw(E, R, scale=R**-0.5), draw(E) - 2
        return MixerWeights(
            *conv, draw(R + 2 * N, E, scale=E**-0.5), *dt, -draw(E, N).exp(), draw(E)
        )

    in_proj, out_proj = draw(2 * E, D, scale=D**-0.5), draw(D, E, scale=E**-0.5)
    rest = (None, None) if bare else (draw(D), draw(D))
    ends = (1 + 0.1 * draw(D), in_proj, None if bare else draw(2 * E))
    return BlockWeights(*ends, side(), side(), out_proj, *rest)


def tokens(B: int, L: int, D: int) -> Tensor:
    return torch.randn(B, L, D, generator=torch.Generator().manual_seed(L))


def operators(function: Callable[[], object]) -> set[str]:
    """Names of our operators that ran."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        function()
    return {e.key.removeprefix('mmvim::') for e in profiler.key_averages() if 'mmvim::' in e.key}


@needs_native
@pytest.mark.parametrize('bare', [True, False])
@pytest.mark.parametrize('sizes', SIZES)
def test_values(sizes: tuple[int, ...], bare: bool, each_isa: Iterable[Any]) -> None:
    """As the ops one by one in float64, as close as those are in float32."""
    B, L, D, *others = sizes
    x, weights = tokens(B, L, D), make(D, *others, bare=bare)
    wide = BlockWeights.of_flat([None if t is None else t.double() for t in weights.flat()])
    exact = mmvim_ops.vim_block(x.double(), wide, scale=0.7)
    one_by_one = mmvim_ops.vim_block(x, weights, scale=0.7, backend='chunked')

    def error(y: Tensor) -> float:
        return float((y - exact).norm() / (exact - x).norm())

    for _ in each_isa:
        with torch.no_grad():
            found = mmvim_ops.vim_block(x, weights, scale=0.7, backend='cpu')
        assert found.shape == x.shape and found.is_contiguous()
        assert error(found) < min(2e-6, 2 * error(one_by_one) + 5e-7)


@needs_native
def test_one_operator_where_nobody_looks_into_it() -> None:
    x, weights = tokens(1, 9, 8), make(8, 16, 3, 2, 4)

    def run() -> Tensor:
        return mmvim_ops.vim_block(x, weights)

    with torch.no_grad():
        assert operators(run) == {'vim_block'}
        with torch.autocast('cpu', torch.bfloat16):
            assert 'vim_block' not in operators(run)
        with FlopCounterMode(display=False) as counter:
            run()
        assert any('bidirectional' in str(op) for op in counter.get_flop_counts()['Global'])
        assert 'vim_block' not in operators(lambda: torch.func.vmap(run_of(weights))(x[None]))
    assert operators(run) == {'vim_block'}  # nothing asks for a gradient
    weights.in_proj.requires_grad_()
    assert 'vim_block' not in operators(run)
    assert run().requires_grad


def run_of(weights: BlockWeights) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        return mmvim_ops.vim_block(x, weights)

    return run


@pytest.mark.parametrize(
    'backend', ['chunked', 'reference', pytest.param('cpu', marks=needs_native)]
)
def test_gradients(backend: str) -> None:
    """Of every parameter, where the ops run one by one."""
    x, weights = tokens(1, 6, 4), make(4, 6, 3, 2, 3)
    leaves = [t.requires_grad_() for t in weights.flat() if t is not None]
    out = mmvim_ops.vim_block(x, weights, backend=backend)
    wide = [None if t is None else t.detach().double().requires_grad_() for t in weights.flat()]
    exact = mmvim_ops.vim_block(x.double(), BlockWeights.of_flat(wide), backend='reference')
    found = torch.autograd.grad(out.square().sum(), leaves)
    wanted = torch.autograd.grad(exact.square().sum(), [t for t in wide if t is not None])
    for actual, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(actual.double(), expected, rtol=2e-4, atol=2e-5)


@needs_native
def test_every_change_of_a_weight_counts_at_once() -> None:
    """Nothing of a weight outlives a call, so no way to change one can be missed."""
    x, weights = tokens(1, 5, 8), make(8, 16, 3, 2, 4)

    def run() -> Tensor:
        return mmvim_ops.vim_block(x, weights)

    with torch.inference_mode():
        for index, weight in enumerate(weights.flat()):
            assert weight is not None
            before = run()
            weight.data.copy_(weight + 0.3)  # counts in no version
            assert not torch.equal(run(), before), index


@needs_native
def test_sequences_and_threads_change_no_bit() -> None:
    x, weights = tokens(5, 70, 24), make(24, 48, 16, 2, 4)
    threads = torch.get_num_threads()
    with torch.no_grad():
        try:
            torch.set_num_threads(1)
            one = mmvim_ops.vim_block(x, weights)
            torch.set_num_threads(3)
            assert torch.equal(mmvim_ops.vim_block(x, weights), one)
        finally:
            torch.set_num_threads(threads)
        each = torch.cat([mmvim_ops.vim_block(x[i : i + 1], weights) for i in range(5)])
        assert torch.equal(each, one)
        assert mmvim_ops.vim_block(x[:0], weights).shape == (0, 70, 24)


@needs_native
def test_strides_of_the_input_do_not_matter() -> None:
    x, weights = tokens(2, 9, 8), make(8, 16, 3, 2, 4)
    with torch.no_grad():
        wanted = mmvim_ops.vim_block(x, weights)
        across = x.transpose(0, 1).contiguous().transpose(0, 1)
        assert torch.equal(mmvim_ops.vim_block(across, weights), wanted)
        turned = weights._replace(in_proj=weights.in_proj.t().contiguous().t())
        assert torch.equal(mmvim_ops.vim_block(x, turned), wanted)


@needs_native
def test_memory_is_less_than_that_of_the_ops() -> None:
    """Two rows of E channels, and the projections of x, in the place of seven rows."""
    B, L, D, E, N, R = 1, 512, 192, 384, 16, 12
    x, weights = tokens(B, L, D), make(D, E, N, R, 4, bare=True)
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p:
        mmvim_ops.vim_block(x, weights)
    held = peak = 0
    assert p.profiler is not None and p.profiler.kineto_results is not None
    for event in p.profiler.kineto_results.events():
        if event.name() == '[memory]':
            held += event.nbytes()
            peak = max(peak, held)
    rows = D + 2 * (E + 32) + 2 * (R + 2 * N)
    assert L * rows * 4 * 0.9 < peak < L * rows * 4 * 1.15


@needs_native
def test_shape_rule() -> None:
    x, weights = tokens(2, 9, 8), make(8, 16, 3, 2, 4)
    args = (x, *weights.flat(), 1e-5, 0.5)
    torch.library.opcheck(
        torch.ops.mmvim.vim_block.default, args, test_utils=('test_schema', 'test_faketensor')
    )


@pytest.mark.parametrize(
    'change, error, words',
    [
        (dict(norm=torch.ones(7)), ValueError, ['norm', '(7,)', '(8,)']),
        (dict(in_proj=torch.ones(8, 32)), ValueError, ['in_proj', '(8, 32)', '(32, 8)']),
        (dict(in_bias=torch.ones(16)), ValueError, ['in_bias', '(16,)', '(32,)']),
        (dict(out_proj=torch.ones(8)), ValueError, ['out_proj', '(D, E)']),
        (dict(gamma=torch.ones(8, dtype=torch.int32)), TypeError, ['gamma', 'int32']),
        (dict(norm=None), TypeError, ['norm', 'NoneType']),
        (dict(forward=None), TypeError, ['forward', 'MixerWeights', 'NoneType']),
    ],
)
def test_bad_weights_are_named(change: dict[str, Any], error: type, words: list[str]) -> None:
    x, weights = tokens(1, 3, 8), make(8, 16, 3, 2, 4)
    with pytest.raises(error) as caught:
        mmvim_ops.vim_block(x, weights._replace(**change))
    assert all(word in str(caught.value) for word in words), caught.value


def test_bad_options_are_named() -> None:
    x, weights = tokens(1, 3, 8), make(8, 16, 3, 2, 4)
    with pytest.raises(ValueError, match='eps must be a number >= 0, got -1'):
        mmvim_ops.vim_block(x, weights, eps=-1)
    with pytest.raises(TypeError, match='weights must be a BlockWeights, got tuple'):
        mmvim_ops.vim_block(x, tuple(weights))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r'expected \(B, L, D\)'):
        mmvim_ops.vim_block(x[0], weights)
