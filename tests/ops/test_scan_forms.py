"""The bidirectional scan with and without a gate, its sums rounded or not, for any N.

Called as operators: what is compared are kernels, whatever functions choose among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from mmvim_ops import loading as native

Inputs = Callable[..., dict[str, Tensor]]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LENGTHS = [1, 31, 64, 65, 129, 197]
STATES = [1, 4, 8, 16, 32]
FORMS = list(product([True, False], repeat=2))
# Threads a channel that the CUDA kernels of so many states have, forwards and backwards.
SPLITS = {1: [(1, 1), (8, 8)], 16: [(1, 4), (16, 8)]}


def operator(kernels: Any) -> Any:
    """The scan of these kernels."""
    own = kernels.name in ('emulated', 'triton')
    namespace = f'mmvim_{kernels.name}' if own else 'mmvim'
    return getattr(torch.ops, namespace).bidirectional_selective_scan.default


@pytest.fixture
def each_split(request: pytest.FixtureRequest) -> Callable[[Any, int], Iterator[tuple[int, int]]]:
    """Has the kernels share a channel among so many threads; once where there is no choice."""

    def walk(kernels: Any, N: int) -> Iterator[tuple[int, int]]:
        if kernels.name == 'emulated':
            force = request.getfixturevalue('emulation').force_splits
        elif kernels.name == 'cuda':
            force = native.force_splits
        else:
            yield 0, 0
            return
        try:
            for split in SPLITS.get(N, [(0, 0)]):
                force(*split)
                yield split
        finally:
            force(0, 0)

    return walk


@pytest.fixture
def run(value_and_grads: Inputs) -> Callable[..., dict[str, Tensor]]:
    """A scan and its gradients; without a gate where there is no z among the inputs."""

    def scan(op: Any, inputs: dict[str, Tensor], wide_out: bool, chunk: int) -> dict[str, Tensor]:
        def function(z: Tensor | None = None, **rest: Tensor) -> Tensor:
            out: Tensor = op(*rest.values(), z, 0.7, wide_out, chunk)[0]
            return out

        return value_and_grads(function, inputs)

    return scan


def sizes() -> Iterator[Any]:
    """N = 1 at every length, the others at one or two; all of them among the slow ones."""
    quick = {(L, 1) for L in LENGTHS} | {(65, 4), (129, 8), (31, 16), (197, 16), (64, 32)}
    for L, N in product(LENGTHS, STATES):
        marks = () if (L, N) in quick else (pytest.mark.slow,)
        yield pytest.param(L, N, marks=marks)


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize(('L', 'N'), list(sizes()))
def test_values_and_gradients(
    L: int,
    N: int,
    dtype: torch.dtype,
    bidirectional_inputs: Inputs,
    run: Any,
    assert_close: Any,
    each_kernels: Iterator[Any],
    each_split: Any,
) -> None:
    """Of an odd number of channels, in blocks of 64 and less; states saved and not."""
    B, E, R = (3, 37, 3) if L % 2 else (1, 69, 12)
    inputs = bidirectional_inputs(B=B, L=L, E=E, N=N, R=R, dtype=dtype)
    wanted = {}
    for gated, wide_out in FORMS:
        some = {name: tensor for name, tensor in inputs.items() if gated or name != 'z'}
        exact = {name: tensor.double() for name, tensor in some.items()}
        exactly = torch.ops.mmvim.chunked_bidirectional_selective_scan.default
        wanted[gated, wide_out] = some, run(exactly, exact, wide_out, 64)
    for kernels in each_kernels:
        if dtype == torch.float16 and kernels.name in native.isas():
            continue  # the CPU kernels have no float16: the functions widen it
        for split in each_split(kernels, N):
            for (gated, wide_out), (some, expected) in wanted.items():
                actual = run(operator(kernels), kernels.place(some), wide_out, 64)
                where = f'{kernels.name} {split} gated {gated} wide_out {wide_out}'
                assert actual['out'].dtype == (torch.float32 if wide_out else dtype), where
                for name, tensor in some.items():
                    assert actual[f'grad of {name}'].dtype == tensor.dtype, (where, name)
                assert_close(actual, expected, where=where)


@pytest.mark.usefixtures('deterministic')
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('N', [1, 16])
def test_views(
    N: int, dtype: torch.dtype, bidirectional_inputs: Inputs, each_kernels: Iterator[Any]
) -> None:
    """Rows inside of wider ones, the float32 gradient too, give the bits of a copy."""
    inputs = bidirectional_inputs(B=2, L=70, E=21, N=N, R=3, dtype=dtype)
    del inputs['z']
    weight = torch.randn(2, 70, 21, generator=torch.Generator().manual_seed(1))

    def wider(tensor: Tensor) -> Tensor:
        edge = torch.full_like(tensor[..., :3], float('nan'))
        return torch.cat((edge, tensor, edge), dim=-1)[..., 3:-3]

    for kernels in each_kernels:
        found = []
        for place in (torch.clone, wider):
            given = kernels.place({'weight': weight, **inputs})
            rows = {name: place(t) if t.dim() > 2 else t for name, t in given.items()}
            grad_out = rows.pop('weight')
            leaves = [tensor.detach().requires_grad_() for tensor in rows.values()]
            out = operator(kernels)(*leaves, None, 0.5, True, 32)[0]
            found.append([out, *torch.autograd.grad(out, leaves, grad_out)])
        assert all(torch.equal(a, b) for a, b in zip(*found)), kernels.name


@pytest.mark.parametrize('N', [1, 5])
def test_number_of_threads(
    N: int, bidirectional_inputs: Inputs, run: Any, each_isa: Iterator[Any]
) -> None:
    """Blocks of channels differ on 1 to 4 threads, sums may not."""
    inputs = bidirectional_inputs(B=1, L=150, E=210, N=N, dtype=torch.bfloat16)
    del inputs['z']
    before = torch.get_num_threads()
    try:
        for kernels in each_isa:
            found = []
            for threads in (1, 2, 3, 4):
                torch.set_num_threads(threads)
                found.append(run(operator(kernels), inputs, True, 64))
            for other in found[1:]:
                assert all(torch.equal(other[name], found[0][name]) for name in other)
    finally:
        torch.set_num_threads(before)


def test_what_n_1_on_a_gpu_runs_on(emulation: Any) -> None:
    """Many channels take the kernel of a thread a channel, few the one that has eight."""
    needed = emulation.shared_bytes
    one, other = (needed(False, 2, split, 1, 12) for split in (1, 8))
    assert 0 < other < one <= 227 * 1024
    assert needed(False, 2, 2, 1, 12) == 0
