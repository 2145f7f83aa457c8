"""Thousands of random calls and training steps: right shapes, right values, no NaN."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmvim_ops_by_name import bidirectional
from torch import Tensor

import mmvim_ops
from mmvim_ops import loading

ROUNDS = 2600  # of four ops each, a third of them for each of the kernels
STEPS = 2000
DTYPES = [torch.float32, torch.float32, torch.bfloat16, torch.float16]


class Draw:
    """Random tensors of any dtype and layout."""

    def __init__(self, seed: int, device: str = 'cpu') -> None:
        self.device = device
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, dtypes: list[torch.dtype], size: float = 1.0) -> Tensor:
        values = torch.randn(shape, generator=self.generator) * size
        return self.lay_out(values.to(self.device, self.rng.choice(dtypes)))

    def lay_out(self, tensor: Tensor) -> Tensor:
        kind = self.rng.randrange(5)
        if kind == 0:  # a part of a wider tensor
            before, after = self.rng.randint(0, 3), self.rng.randint(0, 3)
            wide = F.pad(tensor, (before, after), value=float('nan'))
            return wide[..., before : before + tensor.shape[-1]]
        if kind == 1:  # another order of dimensions
            order = self.rng.sample(range(tensor.dim()), tensor.dim())
            return (
                tensor.permute(order)
                .contiguous()
                .permute([order.index(d) for d in range(len(order))])
            )
        if kind == 2 and tensor.numel():  # the same along a dimension
            dim = self.rng.randrange(tensor.dim())
            return tensor.narrow(dim, 0, 1).expand_as(tensor)
        return tensor


def check(
    function: Callable[..., Any], inputs: dict[str, Tensor | None], draw: Draw, native_backend: str
) -> None:
    """Values and gradients against the chunked scan in float64.

    How exact they are is for other tests to say: errors are measured against the largest values
    and looked for where an index went wrong.
    """
    wanted = [name for name, tensor in inputs.items() if tensor is not None]
    wanted = draw.rng.sample(wanted, draw.rng.randint(0, len(wanted)))
    results = []
    for backend in (native_backend, 'chunked'):
        given = {
            name: tensor.double() if tensor is not None and backend == 'chunked' else tensor
            for name, tensor in inputs.items()
        }
        leaves = [given[name] for name in wanted]
        leaves = [leaf.detach().requires_grad_() for leaf in leaves if leaf is not None]
        outs = function(**(given | dict(zip(wanted, leaves))), backend=backend)
        outs = outs if isinstance(outs, tuple) else (outs,)
        total = sum(out.double().sum() for out in outs)
        results.append((*outs, *(torch.autograd.grad(total, leaves) if leaves else ())))
    largest = [0.0, 0.0]  # of outputs and gradients
    for index, tensor in enumerate(results[1]):
        if tensor.numel():
            is_grad = index >= len(results[1]) - len(wanted)
            largest[is_grad] = max(largest[is_grad], float(tensor.detach().abs().max()))
    for index, (got, want) in enumerate(zip(*results)):
        is_grad = index >= len(results[1]) - len(wanted)
        assert got.shape == want.shape
        fits = want.detach().abs() < 0.99 * torch.finfo(got.dtype).max  # float16 ends at 65504
        got, want = got.detach()[fits], want.detach()[fits]
        assert got.isfinite().all()
        if got.numel():
            relative = 1e-4 if got.dtype == torch.float32 else 1e-2
            limit = relative * float(want.abs().max()) + 1e-5 * largest[is_grad]
            assert float((got.double() - want).abs().max()) <= limit, (index, limit)


def optional(draw: Draw, tensor: Tensor) -> Tensor | None:
    return tensor if draw.rng.random() < 0.5 else None


def length(rng: random.Random) -> int:
    """Mostly within a tile or two, sometimes several chunks."""
    return rng.randint(1, rng.choice([40, 40, 40, 300]))


def states(rng: random.Random) -> int:
    """Often what kernels are made for."""
    return rng.choice([16, rng.randint(1, 18)])


def random_selective_scan(draw: Draw) -> tuple[Callable[..., Any], dict[str, Tensor | None]]:
    rng = draw.rng
    B, L, N, groups = rng.randint(0, 3), length(rng), states(rng), rng.randint(1, 3)
    E = groups * rng.randint(1, 15)
    lead = rng.choice(DTYPES)
    dtypes = [lead] if rng.random() < 0.5 else DTYPES
    softplus = rng.random() < 0.7
    inputs = dict(
        u=draw(B, L, E, dtypes=[lead]),
        delta=draw(B, L, E, dtypes=dtypes, size=rng.choice([0.1, 1.0, 30.0])),
        A=-draw(E, N, dtypes=DTYPES, size=rng.choice([1e-3, 1.0, 30.0])).abs(),
        B=draw(B, L, groups, N, dtypes=dtypes),
        C=draw(B, L, groups, N, dtypes=dtypes),
        D=optional(draw, draw(E, dtypes=DTYPES)),
        z=optional(draw, draw(B, L, E, dtypes=dtypes)),
        delta_bias=optional(draw, draw(E, dtypes=DTYPES)),
    )
    if not softplus:
        inputs |= {n: t.abs() for n, t in inputs.items() if n.startswith('delta') and t is not None}
    options = dict(
        delta_softplus=softplus,
        reverse=rng.random() < 0.5,
        groups=groups,
        return_last_state=rng.random() < 0.5,
    )
    return lambda **tensors: mmvim_ops.selective_scan(**tensors, **options), inputs


def random_bidirectional(draw: Draw) -> tuple[Callable[..., Any], dict[str, Tensor | None]]:
    rng = draw.rng
    B, E, R = (rng.randint(*s) for s in ((0, 3), (1, 40), (1, 6)))
    L, N = length(rng), states(rng)
    lead = rng.choice(DTYPES)
    dtypes = [lead] if rng.random() < 0.5 else DTYPES
    inputs: dict[str, Tensor | None] = {}
    for d in 'fb':
        inputs[f'x_{d}'] = draw(B, L, E, dtypes=[lead])
        inputs[f'dbl_{d}'] = draw(B, L, R + 2 * N, dtypes=dtypes)
        inputs[f'dt_w_{d}'] = draw(E, R, dtypes=DTYPES, size=rng.choice([0.1, 1.0]))
        inputs[f'dt_b_{d}'] = draw(E, dtypes=DTYPES, size=rng.choice([0.1, 1.0, 10.0]))
        inputs[f'A_{d}'] = -draw(E, N, dtypes=DTYPES, size=rng.choice([1e-3, 1.0, 30.0])).abs()
        inputs[f'D_{d}'] = draw(E, dtypes=DTYPES)
    inputs['z'] = draw(B, L, E, dtypes=dtypes)
    scale = rng.choice([0.5, 1, -2.0])
    return lambda **p: bidirectional(**p, scale=scale), inputs


def random_convolution(draw: Draw) -> tuple[Callable[..., Any], dict[str, Tensor | None]]:
    rng = draw.rng
    B, L, E, W = (rng.randint(*s) for s in ((0, 3), (1, 140), (1, 40), (1, 7)))
    reverse = rng.random() < 0.5
    x = draw(B, L, E, dtypes=DTYPES)
    weight, bias = draw(E, W, dtypes=DTYPES), optional(draw, draw(E, dtypes=DTYPES))
    inputs = dict(x=x, weight=weight, bias=bias)
    return lambda **p: mmvim_ops.conv1d_silu(**p, reverse=reverse), inputs


def random_convolutions(draw: Draw) -> tuple[Callable[..., Any], dict[str, Tensor | None]]:
    rng = draw.rng
    B, L, E, W = (rng.randint(*s) for s in ((0, 3), (1, 140), (1, 40), (1, 7)))
    inputs = dict(
        x=draw(B, L, E, dtypes=DTYPES),
        w_f=draw(E, W, dtypes=DTYPES),
        b_f=optional(draw, draw(E, dtypes=DTYPES)),
        w_b=draw(E, W, dtypes=DTYPES),
        b_b=optional(draw, draw(E, dtypes=DTYPES)),
    )
    return mmvim_ops.bi_conv1d_silu, inputs


@pytest.mark.slow
def test_random_calls(each_kernels: Iterator[Any]) -> None:
    """All ops, 3,500 calls each with random shapes, strides, dtypes, options and values."""
    for start, kernels in enumerate(each_kernels):
        for seed in range(start, ROUNDS, 3):
            for make in (
                random_selective_scan,
                random_bidirectional,
                random_convolution,
                random_convolutions,
            ):
                draw = Draw(seed, kernels.device)
                function, inputs = make(draw)
                try:
                    check(function, inputs, draw, kernels.backend)
                except Exception as error:
                    found = {n: t if t is None else (t.dtype, t.shape) for n, t in inputs.items()}
                    raise AssertionError(
                        f'{make.__name__} {seed} {kernels.name} {found}'
                    ) from error


class Mixer(torch.nn.Module):
    """A small bidirectional block whose steps can be pushed to either end."""

    def __init__(self, E: int = 24, N: int = 8, R: int = 3) -> None:
        super().__init__()
        self.x_proj = torch.nn.Linear(E, 2 * (R + 2 * N))
        self.dt_w = torch.nn.Parameter(torch.randn(2, E, R))
        self.dt_b = torch.nn.Parameter(torch.randn(2, E))
        self.A_log = torch.nn.Parameter(torch.arange(1.0, N + 1).log().repeat(2, E, 1))
        self.D = torch.nn.Parameter(torch.ones(2, E))
        self.conv = torch.nn.Parameter(torch.randn(2, E, 4))

    def forward(self, x: Tensor, z: Tensor, shift: float, spread: float) -> Tensor:
        x_f, x_b = mmvim_ops.bi_conv1d_silu(x, self.conv[0], None, self.conv[1], None)
        dbl = F.linear(x, *(p.to(x.dtype) for p in self.x_proj.parameters()))
        dbl_f, dbl_b = (dbl * spread).chunk(2, dim=-1)
        A = -self.A_log.exp()
        return bidirectional(
            *(x_f, x_b, dbl_f, dbl_b, *self.dt_w, *(self.dt_b + shift), *A, *self.D, z)
        )


@pytest.mark.slow
@pytest.mark.skipif(loading.path() is None, reason=f'no native library: {loading.problem()}')
@pytest.mark.parametrize('isa', loading.isas() if loading.path() else ())
def test_training_with_extreme_steps(isa: str) -> None:
    """Steps of 1e-38 to 1e6, decays that vanish or stay: all outputs and gradients are finite."""
    rng = random.Random(0)
    torch.manual_seed(0)
    before = loading.isa()
    loading.use_isa(isa)
    try:
        model = Mixer()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for step in range(STEPS):
            dtype = torch.bfloat16 if step % 2 else torch.float32
            x, z = torch.randn(2, 2, rng.randint(1, 130), 24).to(dtype)
            shift = rng.choice([-100.0, -20.0, -5.0, 0.0, 0.0, 5.0, 30.0, 1e3, 1e6])
            out = model(x, z, shift, rng.choice([0.1, 1.0, 100.0]))
            assert out.dtype == dtype and out.isfinite().all(), (step, shift)
            loss = F.smooth_l1_loss(out.float(), z.float())
            optimizer.zero_grad()
            loss.backward()
            for name, parameter in model.named_parameters():
                assert parameter.grad.isfinite().all(), (step, shift, name)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        assert all(parameter.isfinite().all() for parameter in model.parameters())
    finally:
        loading.use_isa(before)
