"""A Vim block between in_proj and out_proj: values, gradients, and what training keeps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmvim_ops_by_name import (
    MIXER_NAMES,
    SCAN_NAMES,
    bidirectional,
    called,
    needs_native,
    unchanged,
)
from mmvim_ops_by_name import inner as vim_inner
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import mmvim_ops

Inputs = Callable[..., dict[str, Tensor]]
NAMES = ['x', 'z', *MIXER_NAMES]
BACKENDS = ['chunked', pytest.param('cpu', marks=needs_native)]


def inner(xz: Tensor, **others: Any) -> Tensor:
    """The op on views of in_proj's output."""
    return vim_inner(*xz.chunk(2, dim=-1), **others)


def composition(xz: Tensor, scale: float = 0.5, backend: str = 'auto', **p: Any) -> Tensor:
    """The same, op by op."""
    x, z = xz.chunk(2, dim=-1)
    x_f, x_b = mmvim_ops.bi_conv1d_silu(
        x, p.pop('w_f'), p.pop('b_f', None), p.pop('w_b'), p.pop('b_b', None), backend=backend
    )
    dbl_f = F.linear(x_f, p.pop('x_w_f').to(x.dtype))
    dbl_b = F.linear(x_b, p.pop('x_w_b').to(x.dtype))
    dbls = {'dbl_f': dbl_f, 'dbl_b': dbl_b}
    return bidirectional(x_f=x_f, x_b=x_b, **dbls, **p, z=z, scale=scale, backend=backend)


@pytest.fixture
def make(bidirectional_inputs: Inputs) -> Inputs:
    """Inputs by name: ``xz`` in ``dtype``, parameters at least float32."""

    def inputs(
        B: int = 2,
        L: int = 17,
        E: int = 6,
        N: int = 4,
        R: int = 3,
        W: int = 4,
        bias: bool = True,
        dtype: torch.dtype = torch.float64,
    ) -> dict[str, Tensor]:
        p = bidirectional_inputs(B=B, L=L, E=E, N=N, R=R, dtype=dtype)
        generator = torch.Generator().manual_seed(L)

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(p['D_f'].dtype)

        values = {'xz': torch.cat((p['x_f'], p['z']), dim=-1)}
        for suffix in ('f', 'b'):
            values[f'w_{suffix}'] = 0.5 * randn(E, W)
            if bias:
                values[f'b_{suffix}'] = 0.1 * randn(E)
        for suffix in ('f', 'b'):
            values[f'x_w_{suffix}'] = E**-0.5 * randn(R + 2 * N, E)
        return values | {name: p[name] for name in p if name in NAMES and name != 'z'}

    return inputs


class Calls(TorchDispatchMode):
    """Remembers which operators of ours were called, with what."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments: dict[str, list[tuple[Any, ...]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace.startswith('mmvim'):
            name = func._schema.name.split('::')[1].removeprefix('chunked_')
            self.arguments.setdefault(name, []).append(args)
        return func(*args, **(kwargs or {}))


def saved_by(call: Callable[[], Tensor]) -> list[Tensor]:
    """What autograd keeps for a call, each storage once."""
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        return saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = call()
    assert out.requires_grad
    return list(saved.values())


def bytes_of(tensors: list[Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


SIZES = [(1, 1, 6), (2, 2, 5), (2, 65, 24), (3, 197, 40), (1, 260, 33)]


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize(('B', 'L', 'E'), SIZES)
def test_float64_is_the_reference(
    B: int, L: int, E: int, bias: bool, make: Inputs, value_and_grads: Inputs, assert_close: Any
) -> None:
    inputs = make(B=B, L=L, E=E, bias=bias)
    expected = value_and_grads(composition, inputs, backend='reference')
    actual = value_and_grads(inner, inputs, backend='reference')
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert_close(value_and_grads(inner, inputs, backend='chunked'), expected)


@pytest.mark.parametrize(('B', 'L', 'E'), SIZES)
def test_float32_of_chunked(
    B: int, L: int, E: int, make: Inputs, value_and_grads: Inputs, assert_close: Any
) -> None:
    inputs = make(B=B, L=L, E=E, dtype=torch.float32)
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    expected = value_and_grads(composition, exact, backend='reference')
    assert_close(value_and_grads(inner, inputs, backend='chunked'), expected)


@pytest.mark.usefixtures('deterministic')
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize(('B', 'L', 'E'), SIZES)
def test_float32_of_all_kernels(
    B: int,
    L: int,
    E: int,
    bias: bool,
    make: Inputs,
    value_and_grads: Inputs,
    assert_close: Any,
    each_kernels: Iterator[Any],
) -> None:
    inputs = make(B=B, L=L, E=E, bias=bias, dtype=torch.float32)
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    expected = value_and_grads(composition, exact, backend='reference')
    for kernels in each_kernels:
        placed = kernels.place(inputs)
        actual = value_and_grads(inner, placed, backend=kernels.backend)
        assert_close(actual, expected, where=kernels.name)
        in_a_row = value_and_grads(composition, placed, backend=kernels.backend)
        assert torch.equal(actual['out'], in_a_row['out']), kernels.name


def check_half_precision(
    inputs: dict[str, Tensor], backend: str, value_and_grads: Inputs, assert_close: Any
) -> None:
    """What is between the ops is rounded: as good as the composition, and its very output."""
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    truth = value_and_grads(composition, exact, backend='reference')
    actual = value_and_grads(inner, inputs, backend=backend)
    in_a_row = value_and_grads(composition, inputs, backend=backend)
    assert torch.equal(actual['out'], in_a_row['out'])
    assert all(actual[name].dtype == in_a_row[name].dtype for name in in_a_row)
    assert_close(actual, truth, floor=in_a_row)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('backend', BACKENDS)
def test_half_precision(
    backend: str, dtype: torch.dtype, make: Inputs, value_and_grads: Inputs, assert_close: Any
) -> None:
    inputs = make(B=2, L=131, E=40, N=8, dtype=dtype)
    check_half_precision(inputs, backend, value_and_grads, assert_close)
    rounded = {name: tensor.to(dtype) for name, tensor in inputs.items()}
    check_half_precision(rounded, backend, value_and_grads, assert_close)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_emulated(
    dtype: torch.dtype, make: Inputs, value_and_grads: Inputs, assert_close: Any, emulated: Any
) -> None:
    inputs = make(B=2, L=131, E=40, N=8, dtype=dtype)
    check_half_precision(inputs, 'cpu', value_and_grads, assert_close)


@needs_native
def test_float32_gradients_have_the_bits_of_the_composition(
    make: Inputs, value_and_grads: Inputs
) -> None:
    inputs = make(B=2, L=131, E=40, N=8, dtype=torch.float32)
    actual = value_and_grads(inner, inputs, backend='cpu')
    expected = value_and_grads(composition, inputs, backend='cpu')
    for name in expected:
        # A sum and a product in one call may be rounded once or twice.
        close = {'rtol': 1e-5, 'atol': 1e-6 * float(expected[name].abs().max())}
        torch.testing.assert_close(actual[name], expected[name], **close)
    # All but x and the convolutions, to which the sum goes.
    for name in [name for name in NAMES[2:] if name[:2] not in ('w_', 'b_')]:
        assert torch.equal(actual[f'grad of {name}'], expected[f'grad of {name}']), name


def test_gradcheck(make: Inputs) -> None:
    inputs = make(B=1, L=9, E=3, N=2, R=2, W=3)
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    assert torch.autograd.gradcheck(
        lambda *values: inner(**dict(zip(leaves, values)), backend='chunked'),
        tuple(leaves.values()),
    )


@pytest.mark.parametrize('backend', BACKENDS)
def test_scale(backend: str, make: Inputs, value_and_grads: Inputs) -> None:
    inputs = make(dtype=torch.float32)
    half = value_and_grads(inner, inputs, backend=backend)
    whole = value_and_grads(inner, inputs, backend=backend, scale=1.0)
    for name in half:  # a power of two rounds nothing
        assert torch.equal(2 * half[name], whole[name]), name


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('backend', BACKENDS)
def test_gradients_wanted_or_not(backend: str, dtype: torch.dtype, make: Inputs) -> None:
    """The same bits, from other calls: without gradients no state is saved."""
    leaves = {k: v.requires_grad_() for k, v in make(L=131, E=40, dtype=dtype).items()}
    out = inner(**leaves, backend=backend)
    with torch.no_grad():
        plain = inner(**leaves, backend=backend)
    assert plain.grad_fn is None and plain.dtype == dtype
    assert torch.equal(out, plain)


def check_saved(make: Inputs, backend: str, dtype: torch.dtype, chunk: int) -> float:
    """Exactly the inputs, x_proj's outputs and the states; their share of the composition's."""
    B, L, E, N, R = 2, 256, 384, 16, 12
    leaves = make(B=B, L=L, E=E, N=N, R=R, dtype=dtype)
    leaves = {name: tensor.requires_grad_() for name, tensor in leaves.items()}
    given = {tensor.untyped_storage().data_ptr() for tensor in leaves.values()}
    known = given - {leaves['xz'].untyped_storage().data_ptr()}

    def activations(function: Callable[..., Tensor]) -> list[Tensor]:
        found = saved_by(partial(function, **leaves, backend=backend))
        return [tensor for tensor in found if tensor.untyped_storage().data_ptr() not in known]

    mine = activations(inner)
    shapes = sorted(tuple(tensor.shape) for tensor in mine)
    columns = R + 2 * N
    chunks = -(-L // chunk)
    states = (chunks, B, 2, N, E)
    assert shapes == sorted([(B, L, E), (B, L, columns), (B, L, columns), states])
    expected = B * L * (2 * E + 2 * columns) * dtype.itemsize + B * chunks * 2 * N * E * 4
    assert bytes_of(mine) == expected
    return expected / bytes_of(activations(composition))


@needs_native
def test_saved_by_the_cpu(make: Inputs) -> None:
    """Both convolutions' outputs less."""
    assert check_saved(make, 'cpu', torch.float32, 64) < 0.6
    assert check_saved(make, 'cpu', torch.bfloat16, 64) < 0.625


def test_saved_emulated(make: Inputs, emulated: Any) -> None:
    """As on a GPU, where the published composition keeps 13 bytes a token and channel."""
    for dtype in (torch.bfloat16, torch.float16):
        assert check_saved(make, 'cpu', dtype, 128) < 0.6
    leaves = make(B=1, L=4096, E=384, N=16, R=12, dtype=torch.bfloat16)
    known = {leaves[name].requires_grad_().data_ptr() for name in leaves if name != 'xz'}
    mine = saved_by(partial(inner, leaves.pop('xz').requires_grad_(), **leaves, backend='cpu'))
    kept = bytes_of([tensor for tensor in mine if tensor.data_ptr() not in known])
    assert kept / (4096 * 384) < 0.43 * 13


def test_saved_by_chunked(make: Inputs) -> None:
    """Chunks are shorter there, so that states weigh more."""
    assert check_saved(make, 'chunked', torch.float32, 21) < 0.7


# B, L, E, N, R, and the tokens between two states that `chunked` saves: a buffer has 2^19 numbers.
KEPT = [(2, 256, 384, 16, 12, 21), (1, 1000, 384, 16, 12, 42), (3, 70, 24, 4, 3, 64)]
KEPT += [(2, 17, 8, 1, 1, 17)]


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(('B', 'L', 'E', 'N', 'R', 'chunk'), KEPT)
@pytest.mark.parametrize('backend', BACKENDS)
def test_bytes_kept_for_the_backward_pass(
    backend: str, B: int, L: int, E: int, N: int, R: int, chunk: int, dtype: Any, make: Inputs
) -> None:
    """In_proj's output, the rows of dt, B and C, and a state every so many tokens; nothing else."""
    leaves = make(B=B, L=L, E=E, N=N, R=R, dtype=dtype)
    leaves = {name: tensor.requires_grad_() for name, tensor in leaves.items()}
    places = {tensor.untyped_storage().data_ptr(): name for name, tensor in leaves.items()}
    kept: dict[str, int] = {}
    for tensor in saved_by(partial(inner, **leaves, backend=backend)):
        name = places.get(tensor.untyped_storage().data_ptr(), str(tuple(tensor.shape)))
        kept[name] = kept.get(name, 0) + tensor.untyped_storage().nbytes()
    parameters = {name: leaves[name].nbytes for name in leaves if name != 'xz'}
    states = -(-L // (64 if backend == 'cpu' else chunk))  # docs/ops.md: before every 64 tokens
    assert kept == parameters | {
        'xz': B * L * 2 * E * dtype.itemsize,
        str((B, L, R + 2 * N)): 2 * B * L * (R + 2 * N) * dtype.itemsize,
        str((states, B, 2, N, E)): states * B * 2 * N * E * 4,
    }


FROZEN = [
    {'xz'},
    {'w_f', 'w_b', 'b_f', 'b_b'},
    {'x_w_f'},
    {'xz', 'w_f', 'b_f', 'w_b', 'b_b', 'x_w_f', 'x_w_b'},
    {'A_f', 'dt_w_b', 'D_b', 'x_w_b'},
    {'xz', 'w_f', 'w_b', 'x_w_f', 'dt_w_f', 'A_f', 'A_b', 'D_f', 'D_b', 'dt_b_b'},
]


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('frozen', FROZEN, ids=lambda names: '-'.join(sorted(names)))
def test_frozen_inputs_cost_nothing(frozen: set[str], backend: str, make: Inputs) -> None:
    inputs = make(L=70, dtype=torch.float32)
    weight = torch.randn(inputs['xz'].chunk(2, -1)[0].shape)

    def gradients(frozen: set[str]) -> tuple[dict[str, Tensor], Calls]:
        leaves = {k: v.detach().clone().requires_grad_(k not in frozen) for k, v in inputs.items()}
        out = inner(**leaves, backend=backend)
        with Calls() as calls:
            out.backward(weight)
        return {k: v.grad for k, v in leaves.items() if v.grad is not None}, calls

    full, _ = gradients(set())
    some, calls = gradients(frozen)
    assert full.keys() == inputs.keys()
    assert some.keys() == inputs.keys() - frozen
    assert all(unchanged(some[name], full[name], backend) for name in some)

    ((*_, needs, _),) = calls.arguments['bidirectional_selective_scan_backward']
    moves_x = not {'xz', 'w_f', 'b_f', 'w_b', 'b_b'} <= frozen
    assert needs == [
        *(moves_x, moves_x, moves_x or 'x_w_f' not in frozen, moves_x or 'x_w_b' not in frozen),
        *(name not in frozen for name in SCAN_NAMES[4:]),
        'xz' not in frozen,
    ]
    if backend == 'cpu':
        assert len(calls.arguments['bi_conv1d_silu']) == 1
        found = calls.arguments.get('bi_conv1d_silu_backward', [])
        wanted = [name not in frozen for name in ('xz', 'w_f', 'b_f', 'w_b', 'b_b')]
        assert [arguments[-1] for arguments in found] == [wanted] * moves_x


def test_only_the_gate_is_trained(make: Inputs) -> None:
    inputs = make(L=70, dtype=torch.float32)
    x, z = inputs.pop('xz').chunk(2, dim=-1)
    grads = []
    for x_needs in (True, False):
        leaves = [x.clone().requires_grad_(x_needs), z.clone().requires_grad_()]
        out = vim_inner(*leaves, **inputs, backend='chunked')
        grads.append(torch.autograd.grad(out.square().sum(), leaves[1])[0])
    assert torch.equal(*grads)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('backward_too', [False, True])
def test_autocast(
    backward_too: bool, backend: str, dtype: torch.dtype, make: Inputs, assert_close: Any
) -> None:
    """x_proj in autocast's dtype, all else in full precision: as the ops one by one."""
    inputs = make(L=131, E=40, dtype=dtype)
    found = []
    for function in (inner, composition):
        leaves = {k: v.detach().clone().requires_grad_() for k, v in inputs.items()}
        with torch.autocast('cpu', dtype=torch.bfloat16):
            out = function(**leaves, backend=backend)
            if backward_too:
                out.backward(torch.ones_like(out))
        if not backward_too:
            out.backward(torch.ones_like(out))
        assert out.dtype == dtype
        assert all(
            leaf.grad is not None and leaf.grad.dtype == leaf.dtype for leaf in leaves.values()
        )
        found.append({'out': out.detach()} | {f'grad of {k}': v.grad for k, v in leaves.items()})
    assert torch.equal(found[0]['out'], found[1]['out'])
    plain = inner(**inputs, backend=backend)
    assert torch.equal(found[0]['out'], plain) == (dtype == torch.bfloat16)
    # float32: only the order of sums differs, and what autocast rounds is rounded in both.
    limits = (1e-5, 1e-5) if dtype == torch.float32 else (8e-3, 3e-3)
    assert_close(found[0], found[1], limits, limits)


@pytest.mark.parametrize('backend', BACKENDS)
def test_autocast_around_the_backward_pass_alone(backend: str, make: Inputs) -> None:
    inputs = make(L=70, dtype=torch.float32)
    leaves = [tensor.requires_grad_() for tensor in inputs.values()]
    out = inner(**inputs, backend=backend).sum()
    expected = torch.autograd.grad(out, leaves, retain_graph=True)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = torch.autograd.grad(out, leaves)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('reentrant', [False, True])
def test_checkpointed(reentrant: bool, backend: str, make: Inputs) -> None:
    inputs = make(L=70, dtype=torch.float32)

    def run(*values: Tensor) -> Tensor:
        return inner(**dict(zip(inputs, values)), backend=backend)

    grads = []
    for again in (False, True):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs.values()]
        out = checkpoint(run, *leaves, use_reentrant=reentrant) if again else run(*leaves)
        out.square().sum().backward()
        grads.append([leaf.grad for leaf in leaves])
    assert all(torch.equal(a, b) for a, b in zip(*grads))


@pytest.mark.parametrize('backend', BACKENDS)
def test_backward_again_and_twice(backend: str, make: Inputs) -> None:
    inputs = make(dtype=torch.float32)
    leaves = [tensor.requires_grad_() for tensor in inputs.values()]
    out = inner(**inputs, backend=backend).square().sum()
    first = torch.autograd.grad(out, leaves, retain_graph=True)
    again = torch.autograd.grad(out, leaves, create_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    sentence = "cannot be differentiated twice, .*scan_backend='reference'"
    with pytest.raises(RuntimeError, match=sentence):
        again[0].sum().backward()


@pytest.mark.parametrize('backend', BACKENDS)
def test_gradient_in_any_layout(backend: str, make: Inputs) -> None:
    inputs = make(B=3, L=70, dtype=torch.float32)
    leaves = [tensor.requires_grad_() for tensor in inputs.values()]
    out = inner(**inputs, backend=backend)
    column = torch.randn(3, 70, 1)
    for grad in (column.expand_as(out), torch.randn(out.shape[::-1]).permute(2, 1, 0)):
        wanted = torch.autograd.grad(out, leaves, grad.contiguous(), retain_graph=True)
        found = torch.autograd.grad(out, leaves, grad, retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted))


@pytest.mark.parametrize('backend', BACKENDS)
def test_an_empty_batch(backend: str, make: Inputs, value_and_grads: Inputs) -> None:
    found = value_and_grads(inner, make(B=0, dtype=torch.float32), backend=backend)
    assert found['out'].shape == (0, 17, 6)
    assert not any(grad.any() for grad in found.values())


def test_the_order_of_sums_is_asked_for(make: Inputs, deterministic: None) -> None:
    for wanted in (True, False):
        torch.use_deterministic_algorithms(wanted)
        out = inner(**{k: v.requires_grad_() for k, v in make().items()}, backend='chunked')
        with Calls() as calls:
            out.sum().backward()
        ((*_, found),) = calls.arguments['bidirectional_selective_scan_backward']
        assert found is wanted


def test_compile(
    make: Inputs, value_and_grads: Inputs, assert_close: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fullgraph, forward and backward; a second length compiles with symbolic sizes."""
    torch._dynamo.reset()
    compiled = torch.compile(inner, fullgraph=True, backend='aot_eager')
    for L in (33, 70):
        inputs = make(L=L, dtype=torch.float32)
        expected = value_and_grads(inner, inputs)
        with monkeypatch.context() as patch:
            # What to save is the compiler's choice.
            patch.delattr('mmvim_ops.backends.operators._Recomputing')
            actual = value_and_grads(compiled, inputs)
        assert_close(actual, expected, (2e-6, 5e-7), (2e-5, 5e-6))


@needs_native
def test_export(make: Inputs) -> None:
    """With gradients wanted, too, a graph holds the operators and no Python."""

    class Block(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return inner(**dict(zip(inputs, tensors)))

    inputs = make(dtype=torch.float32)
    tensors = tuple(tensor.requires_grad_() for tensor in inputs.values())
    program = torch.export.export(Block(), tensors)
    called = [str(node.target) for node in program.graph.nodes]
    for name in ('bi_conv1d_silu', 'bidirectional_selective_scan'):
        assert called.count(f'mmvim.{name}.default') == 1
    assert torch.equal(program.module()(*tensors), inner(**inputs))


def test_every_bad_shape_is_named(make: Inputs) -> None:
    x, z = make(dtype=torch.float32)['xz'].chunk(2, dim=-1)
    given: dict[str, Any] = make(dtype=torch.float32) | dict(x=x, z=z)
    del given['xz']
    assert sorted(given) == sorted(NAMES)
    vim_inner(**given)
    for name, wrong in itertools.product(NAMES, ('larger', 'flat', 'no tensor', 'wide', 'away')):
        tensor = given[name]
        value = {
            'larger': torch.zeros([size + 1 for size in tensor.shape]),
            'flat': tensor.flatten().unsqueeze(0).unsqueeze(0).unsqueeze(0),
            'no tensor': [1.0],
            'wide': tensor.double(),
            'away': tensor.to('meta'),
        }[wrong]
        error = {'no tensor': TypeError, 'wide': TypeError}.get(wrong, ValueError)
        with pytest.raises(error) as raised:
            vim_inner(**given | {name: value})
        if name not in ('x', 'w_f', 'A_f', 'dt_w_f'):  # these say what sizes the others have
            assert str(raised.value).startswith(f'{called(name)} '), (name, wrong)


@pytest.mark.parametrize(
    ('changes', 'error', 'message'),
    [
        (dict(x=torch.zeros(2, 17)), ValueError, r'x has 2 dimensions.*\(B, L, E\)'),
        (dict(z=torch.zeros(2, 17, 12)), ValueError, r'z has shape.*expected \(B, L, E\)'),
        (
            dict(w_b=torch.zeros(6, 3)),
            ValueError,
            r'reverse.conv_weight has shape \(6, 3\).*\(6, 4\)',
        ),
        (
            dict(x_w_f=torch.zeros(10, 6)),
            ValueError,
            r'forward.x_proj .*\(R \+ 2 N, E\) = \(11, 6\)',
        ),
        (dict(dt_w_f=torch.zeros(6, 0)), ValueError, 'forward.dt_weight has shape.*R >= 1'),
        (dict(A_f=torch.zeros(6, 0)), ValueError, 'forward.A has shape.*N >= 1'),
        (dict(b_f=0.0), TypeError, 'forward.conv_bias must be a Tensor, got float'),
        (dict(scale=float('nan')), ValueError, 'scale=nan is not finite'),
        (dict(scale=None), TypeError, 'scale must be a float, got NoneType'),
        (
            dict(backend='numpy'),
            ValueError,
            "backend='numpy' is unknown; valid: auto, cuda, triton, cpu",
        ),
        (dict(backend='cuda'), RuntimeError, 'needs CUDA tensors'),
    ],
)
def test_input_checks(
    changes: dict[str, Any], error: type[Exception], message: str, make: Inputs
) -> None:
    x, z = make(dtype=torch.float32)['xz'].chunk(2, dim=-1)
    given: dict[str, Any] = make(dtype=torch.float32) | dict(x=x, z=z)
    del given['xz']
    with pytest.raises(error, match=message):
        vim_inner(**given | changes)
