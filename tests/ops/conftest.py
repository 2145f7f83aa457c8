"""Seeded inputs, error measures, goldens and kernels shared by the tests of the ops."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import itertools
import os
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from mmvim_ops import backends, library, loading
from mmvim_ops.backends import triton
from mmvim_ops.backends.native import CPU, CUDA
from mmvim_ops.backends.operators import OperatorBackend


def _load(name: str, file: Path) -> ModuleType:
    """Import a file beside the tests; they can then import it by this name."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_compiling = _load('mmvim_ops_emulation', Path(__file__).with_name('emulation') / 'compile.py')
_load('mmvim_ops_by_name', Path(__file__).with_name('by_name.py'))
_build = _compiling.load_build()  # what tests of the build import as mmvim_ops_build

DEFAULT_GOLDENS = Path(__file__).resolve().parents[2].parent / 'shared' / 'goldens'
# (maximum error over maximum, relative rms error) of outputs and of gradients, by their dtype.
TOLERANCES = {
    torch.float64: ((1e-12, 1e-12), (1e-11, 1e-11)),
    torch.float32: ((2e-6, 5e-7), (2e-5, 5e-6)),
    torch.bfloat16: ((8e-3, 3e-3), (8e-3, 3e-3)),
    torch.float16: ((1e-3, 5e-4), (1e-3, 5e-4)),
}
# The largest parts of an error that the rounding of an exact result to a dtype explains.
_ROUNDING = {torch.bfloat16: 1.01, torch.float16: 1.01}


class Emulated(OperatorBackend):
    """The emulated kernels as a backend; its operators are a namespace of their own."""

    name, note, chunk = 'cpu', 'CUDA kernels in loops', 128
    conv_width = CUDA.conv_width

    def chunk_length(self, x: Tensor, states: int, directions: int, saves: bool) -> int:
        return self.chunk if saves else x.shape[1]

    def serves(self, device: torch.device, dtype: torch.dtype, *sizes: int) -> bool:
        return device.type == 'cpu' and dtype != torch.float64


class Emulation:
    """The CUDA kernels in loops on the CPU, and what can be chosen of them."""

    def __init__(self, path: Path) -> None:
        self.backend = Emulated(library.register('mmvim_emulated'))
        torch.ops.load_library(path)
        self.c = ctypes.CDLL(str(path))
        self.c.mmvim_cuda_force_splits.argtypes = [
            *(ctypes.c_int, ctypes.c_int, ctypes.c_bool, ctypes.c_bool)
        ]
        self.c.mmvim_emulation_use_order.argtypes = [ctypes.c_int, ctypes.c_bool]
        self.c.mmvim_emulation_neighbours.argtypes = [
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_int,
        ]
        self.c.mmvim_emulation_neighbours.restype = ctypes.c_char_p
        self.c.mmvim_emulation_choose_split.argtypes = [
            *(ctypes.c_bool, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64),
            *(ctypes.c_int, ctypes.c_int, ctypes.c_int),
        ]

    def use_order(self, order: int, copies_arrive_early: bool = False) -> None:
        """Run the threads of a phase forwards (0), backwards (1) or shuffled (2)."""
        self.c.mmvim_emulation_use_order(order, copies_arrive_early)

    def use_device(
        self,
        multiprocessors: int = 132,
        shared_bytes: int = 227 * 1024,
        parts_bytes: int = 64 * 2**20,
    ) -> None:
        """Choose kernels for a GPU that has so much; by default for an H200."""
        self.c.mmvim_emulation_use_device(
            multiprocessors, shared_bytes, ctypes.c_int64(parts_bytes)
        )

    def force_splits(
        self,
        forward: int = 0,
        backward: int = 0,
        if_it_fits: bool = False,
        general: bool = False,
    ) -> None:
        """Threads a channel and direction; 0 leaves them to the rule. See loading.force_splits."""
        self.c.mmvim_cuda_force_splits(forward, backward, if_it_fits, general)

    def vim_kernel(self, backward: bool, B: int, L: int, E: int, R: int) -> int:
        """The split for a block of a Vim, negative where its kernel is one for Vim alone."""
        kernel: int = self.c.mmvim_emulation_vim_kernel(
            backward, ctypes.c_int64(B), ctypes.c_int64(L), E, R
        )
        return kernel

    def shared_bytes(
        self, backward: bool, size: int, split: int, states: int, rank: int, vim: bool = False
    ) -> int:
        """What a kernel's block has for numbers of so many bytes; 0 if there is no such kernel."""
        given = backward, size, split, states, rank, vim
        bytes_: int = self.c.mmvim_emulation_shared_bytes(*given)
        return bytes_

    def use_chunk(self, chunk: int) -> None:
        """Save a state every so many tokens, while the emulation is in use."""
        self.backend.chunk = chunk

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Put it behind backend='cpu', whether there is a native library or not."""
        with pytest.MonkeyPatch.context() as patch:
            order = (self.backend if each is CPU else each for each in backends.ORDER)
            patch.setattr(backends, 'ORDER', tuple(order))
            try:
                yield
            finally:
                self.use_chunk(128)
                self.use_order(0)
                self.use_device()
                self.force_splits()


@pytest.fixture(scope='session')
def emulation() -> Emulation:
    """The emulation, compiled where it can be; ``MMVIM_FORCE_EXT=1`` says that it can."""
    if _build is None:
        pytest.skip('no emulation of the CUDA kernels: their sources are not installed')
    try:
        return Emulation(_compiling.emulation())
    except _build.BuildError as error:
        if _build._enabled(os.environ, 'MMVIM_FORCE_EXT'):
            raise
        pytest.skip(f'no emulation of the CUDA kernels: {error}')


@pytest.fixture
def emulated(emulation: Emulation) -> Iterator[Emulation]:
    """The emulation behind backend='cpu', whether there is a native library or not."""
    with emulation.in_use():
        yield emulation


class Kernels(NamedTuple):
    """An implementation of the fused ops: its name, the ``backend=`` that takes it, its device."""

    name: str
    backend: str
    device: str

    def place(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors where these kernels read them."""
        return {name: tensor.to(self.device) for name, tensor in tensors.items()}


@pytest.fixture
def each_isa() -> Iterator[Iterator[Kernels]]:
    """The CPU kernels of every instruction set that this machine runs, in use while it lasts."""
    if loading.path() is None:
        pytest.skip(f'no native library: {loading.problem()}')
    walk = _isas()
    yield walk
    walk.close()


@pytest.fixture
def each_kernels(request: pytest.FixtureRequest) -> Iterator[Iterator[Kernels]]:
    """All kernels that can run: of every instruction set, CUDA emulated, CUDA, Triton's on a GPU.

    Each is in use while its turn lasts.
    """
    with contextlib.ExitStack() as stack:
        walks: list[Generator[Kernels, None, None]] = (
            [_isas()] if loading.path() is not None else []
        )
        with contextlib.suppress(pytest.skip.Exception):
            walks.append(_emulated(request.getfixturevalue('emulation')))
        if loading.cuda_problem() is None:
            walks.append(_cuda())
        if triton.TRITON.unavailable() is None and torch.cuda.is_available():
            walks.append(_triton())
        if not walks:
            pytest.skip(f'no native library: {loading.problem()}')
        for walk in walks:
            stack.callback(walk.close)
        yield itertools.chain(*walks)


def _isas() -> Generator[Kernels, None, None]:
    before = loading.isa()
    try:
        for name in loading.isas():
            loading.use_isa(name)
            yield Kernels(name, 'cpu', 'cpu')
    finally:
        loading.use_isa(before)


def _emulated(emulation: Emulation) -> Generator[Kernels, None, None]:
    with emulation.in_use():
        yield Kernels('emulated', 'cpu', 'cpu')


def _cuda() -> Generator[Kernels, None, None]:
    yield Kernels('cuda', 'cuda', 'cuda')


def _triton() -> Generator[Kernels, None, None]:
    yield Kernels('triton', 'triton', 'cuda')


@pytest.fixture(scope='session')
def _interpreter() -> Iterator[None]:
    """The Triton kernels in Triton's interpreter, behind backend='triton' on CPU tensors.

    It rounds to bfloat16 towards zero, where GPUs round to the nearest: here it does as they do.
    """
    pytest.importorskip('triton')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TRITON_INTERPRET', '1')  # kernels look at it when they are imported
        from triton.runtime import interpreter

        from mmvim_ops.triton_kernels import conv, device, norm, scans  # noqa: F401
    if not device.is_interpreted():
        pytest.skip('the Triton kernels were imported to be compiled')
    if not triton.INTERPRETED:
        triton.register('cpu')
    convert = interpreter._convert_float

    def to_nearest(data: Any, given: Any, wanted: Any, mode: Any) -> Any:
        if (str(given), str(wanted)) != ('fp32', 'bf16'):
            return convert(data, given, wanted, mode)
        return torch.tensor(data).bfloat16().view(torch.int16).numpy().view('uint16')

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton, 'INTERPRETED', True)
        patch.setattr(interpreter, '_convert_float', to_nearest)
        yield


@pytest.fixture
def triton_device(request: pytest.FixtureRequest) -> str:
    """Where the Triton kernels run: on a GPU, or interpreted on the CPU."""
    if torch.cuda.is_available():
        return 'cuda'
    request.getfixturevalue('_interpreter')
    return 'cpu'


@pytest.fixture
def deterministic() -> Iterator[None]:
    """The same bits every time, also on a GPU; torch fills what it hands out with NaN, too."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def golden() -> Callable[[str], dict[str, Tensor]]:
    """Loader of ``ops/<name>.npz`` as float64 tensors; skips where the goldens are absent."""
    numpy = pytest.importorskip('numpy')
    folder = Path(os.environ.get('MMVIM_GOLDENS', DEFAULT_GOLDENS)) / 'ops'
    if not folder.is_dir():
        pytest.skip(f'no goldens at {folder}; set MMVIM_GOLDENS')

    def load(name: str) -> dict[str, Tensor]:
        with numpy.load(folder / f'{name}.npz') as archive:
            return {key: torch.from_numpy(archive[key]).double() for key in archive.files}

    return load


@pytest.fixture
def scan_inputs() -> Callable[..., dict[str, Tensor]]:
    """Inputs of a generic scan by name; activations in ``dtype``, parameters at least float32.

    Some steps are negative: a scan without softplus would grow, not decay.
    """

    def make(
        B: int = 2,
        L: int = 17,
        E: int = 6,
        N: int = 4,
        groups: int = 1,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
    ) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        activations = {
            'u': randn(B, L, E),
            'delta': randn(B, L, E) - 2,
            'B': randn(B, L, groups, N),
            'C': randn(B, L, groups, N),
            'z': randn(B, L, E),
        }
        parameters = {
            'A': -torch.exp(randn(E, N)),
            'D': randn(E),
            'delta_bias': 0.5 * randn(E),
        }
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        inputs = {name: value.to(dtype) for name, value in activations.items()}
        return inputs | {name: value.to(wide) for name, value in parameters.items()}

    return make


@pytest.fixture
def bidirectional_inputs() -> Callable[..., dict[str, Tensor]]:
    """Inputs of the bidirectional scan by name, in the order of its signature."""

    def make(
        B: int = 2,
        L: int = 17,
        E: int = 6,
        N: int = 4,
        R: int = 3,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
    ) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        wide = torch.float64 if dtype == torch.float64 else torch.float32
        values: dict[str, Tensor] = {}
        for name in ('x_f', 'x_b'):
            values[name] = randn(B, L, E).to(dtype)
        for name in ('dbl_f', 'dbl_b'):
            values[name] = randn(B, L, R + 2 * N).to(dtype)
        for name in ('dt_w_f', 'dt_w_b'):
            values[name] = (randn(E, R) * R**-0.5).to(wide)
        for name in ('dt_b_f', 'dt_b_b'):
            values[name] = (0.5 * randn(E) - 2).to(wide)
        for name in ('A_f', 'A_b'):
            values[name] = (-torch.exp(randn(E, N))).to(wide)
        for name in ('D_f', 'D_b'):
            values[name] = randn(E).to(wide)
        values['z'] = randn(B, L, E).to(dtype)
        return values

    return make


@pytest.fixture
def value_and_grads() -> Callable[..., dict[str, Tensor]]:
    """Run a function of named tensors; its outputs and, by input name, the gradients.

    What outputs are weighted by fits into every dtype, so that all have the same gradients.
    """

    def run(
        function: Callable[..., Any], tensors: dict[str, Tensor], **options: Any
    ) -> dict[str, Tensor]:
        leaves = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        for leaf in leaves.values():
            leaf.requires_grad_()
        result = function(**leaves, **options)
        outs = result if isinstance(result, tuple) else (result,)
        generator = torch.Generator().manual_seed(99)
        weights = [torch.randn(out.shape, generator=generator).bfloat16() for out in outs]
        weights = [weight.to(out) for weight, out in zip(weights, outs)]
        grads = torch.autograd.grad(outs, tuple(leaves.values()), weights)
        names = ('out', *(f'out {index}' for index in range(1, len(outs))))
        found = {name: out.detach() for name, out in zip(names, outs)}
        return found | {f'grad of {name}': grad for name, grad in zip(leaves, grads)}

    return run


def _measure(got: Tensor, want: Tensor) -> tuple[float, float]:
    """Largest error over the largest value, and relative rms error; zeros have to be zeros."""
    error = got.double() - want
    if not error.any():
        return 0.0, 0.0
    return float(error.abs().max() / want.abs().max()), float(error.norm() / want.norm())


def _joined(results: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of all parameters of a single channel as one.

    Alone, each would be a single number: a sum that may cancel down to the rounding of its terms.
    """
    small = [name for name in results if name.startswith('grad') and results[name].dim() < 3]
    whole = torch.cat([results[name].flatten() for name in small])
    rest = {name: tensor for name, tensor in results.items() if name not in small}
    return rest | {'grad of parameters': whole}


@pytest.fixture
def assert_close() -> Callable[..., None]:
    """Check two dicts of tensors by maximum error over maximum and by relative rms error.

    Without tolerances, those of each tensor's dtype hold. ``floor`` is what an error may come to in
    any case: results by name that are as good as can be had, give or take a half. With one of
    ``channels``, the gradients of all parameters count as one.
    """

    def check(
        actual: dict[str, Tensor],
        expected: dict[str, Tensor],
        out: tuple[float, float] | None = None,
        grads: tuple[float, float] | None = None,
        where: object = '',
        floor: dict[str, Tensor] | None = None,
        channels: int | None = None,
    ) -> None:
        assert actual.keys() == expected.keys()
        if channels == 1:
            actual, expected = _joined(actual), _joined(expected)
        for name in expected:
            got, want = actual[name].cpu(), expected[name].double()
            limits = TOLERANCES[got.dtype][not name.startswith('out')]
            if out is not None:
                limits = out if name.startswith('out') or grads is None else grads
            assert got.shape == want.shape, (where, name)
            assert torch.isfinite(got).all(), (where, name)
            # A few half-precision numbers may miss the rms by the rounding of an exact result.
            rounding = _measure(want.to(got.dtype), want)[1] * _ROUNDING.get(got.dtype, 0.0)
            limits = limits[0], max(limits[1], rounding)
            if floor is not None and name in floor:
                limits = tuple(max(a, 1.5 * b) for a, b in zip(limits, _measure(floor[name], want)))
            found = _measure(got, want)
            assert found[0] <= limits[0] and found[1] <= limits[1], (
                f'{name} {where}: errors (maximum, rms) {found}, tolerances {limits}'
            )

    return check


@pytest.fixture
def compare_triton(
    triton_device: str,
    value_and_grads: Callable[..., dict[str, Tensor]],
    assert_close: Callable[..., None],
) -> Callable[..., None]:
    """Compares values and all gradients of an op in Triton with the reference's in float64.

    With ``loop`` it is enough to be as good as the token loop in the dtype of the inputs.
    """

    def check(
        function: Callable[..., Any],
        inputs: dict[str, Tensor],
        where: object = '',
        loop: bool = False,
    ) -> None:
        exact = {name: tensor.double() for name, tensor in inputs.items()}
        expected = value_and_grads(function, exact, backend='reference')
        floor = value_and_grads(function, inputs, backend='reference') if loop else None
        given = {name: tensor.to(triton_device) for name, tensor in inputs.items()}
        actual = value_and_grads(function, given, backend='triton')
        lead = next(iter(inputs.values()))
        for name, tensor in inputs.items():
            assert actual[f'grad of {name}'].dtype == tensor.dtype
        assert_close(actual, expected, where=where, channels=lead.shape[2], floor=floor)

    return check
