"""Loads the native library that ``ops/build.py`` compiled, if it is sound, and says why not.

Importing this module registers the library's kernels behind the ``mmvim::`` operators. It never
fails: a library that is absent, broken, stale or foreign ends in :func:`problem`.

The sidecar is read before the library is mapped: touching the pages of a truncated library kills
the process, and one whose exported functions or schemas changed would fail in the middle of a
call. The environment variable ``MMVIM_CPU_ISA`` names the instruction set of the CPU kernels; it
is read here, once.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmvim_ops.library_file import (
    INTERFACE,
    LIBRARY,
    OLDEST_CAPABILITY,
    OLDEST_TORCH,
    PURE_PYTHON,
    SIDECAR,
    source_files,
    sources_digest,
)

_FOLDER = Path(__file__).resolve().parent
_AGAIN = 'install again with `pip install --no-build-isolation`'

_library: ctypes.CDLL | None = None
_facts: dict[str, Any] = {}  # what the sidecar says
_problem: str | None = None
isa_problem: str | None = None  # of what MMVIM_CPU_ISA names


class _Unusable(Exception):
    """The reason for which the library is not used."""


def _load(folder: Path) -> ctypes.CDLL:
    """Map the library, once it is what the sidecar says and what this version needs."""
    library, sidecar = folder / LIBRARY, folder / SIDECAR
    try:
        if sidecar.exists():
            _facts.update(json.loads(sidecar.read_text(encoding='utf-8')))
        content = library.read_bytes() if library.exists() else None
    except (OSError, ValueError, TypeError) as error:
        raise _Unusable(
            f'broken: {LIBRARY} or {SIDECAR} cannot be read ({error}); {_AGAIN}'
        ) from None
    if content is None:
        reason = f'{_AGAIN}, or run `python ops/build.py` among the sources'
        raise _Unusable(f'not built: {_facts.get("problem", reason)}')
    if _facts.get('interface') != INTERFACE:
        raise _Unusable(
            f'stale: {SIDECAR} says interface {_facts.get("interface")} and this mmvim_ops needs '
            f'{INTERFACE}; {_AGAIN}'
        )
    if hashlib.sha256(content).hexdigest() != _facts.get('sha256'):
        raise _Unusable(f'broken: {LIBRARY} is not the file that was built; {_AGAIN}')
    oldest = '.'.join(map(str, OLDEST_TORCH))
    if torch.__version__ < oldest:  # a TorchVersion, compared as one
        raise _Unusable(f'torch {torch.__version__} is older than {oldest}; upgrade torch')
    try:
        torch.ops.load_library(library)
        functions = ctypes.CDLL(str(library))
        functions.mmvim_ops_isas.restype = ctypes.c_char_p
        functions.mmvim_ops_isa.restype = ctypes.c_char_p
        functions.mmvim_ops_use_isa.argtypes = [ctypes.c_char_p]
        functions.mmvim_ops_exp_many.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
        functions.mmvim_ops_exp_many.restype = None
        if has_cuda():
            functions.mmvim_cuda_knows_streams.restype = ctypes.c_bool
            functions.mmvim_cuda_force_splits.argtypes = [
                *(ctypes.c_int, ctypes.c_int, ctypes.c_bool, ctypes.c_bool)
            ]
            functions.mmvim_cuda_force_splits.restype = None
            functions.mmvim_cuda_versions.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
            functions.mmvim_cuda_versions.restype = None
    except Exception as error:  # what a loader finds wrong with a file has no common class
        raise _Unusable(f'foreign: {LIBRARY} cannot be loaded ({error}); {_AGAIN}') from None
    return functions


def _loaded() -> ctypes.CDLL:
    if _library is None:
        raise RuntimeError(f'the native library cannot be used: {_problem}')
    return _library


def problem() -> str | None:
    """The reason for which the native kernels cannot be used, or None."""
    return _problem or isa_problem


def is_wanted() -> bool:
    """Whether a missing library is worth a warning: not where pure Python was asked for."""
    return _facts.get('problem') != PURE_PYTHON


def has_cuda() -> bool:
    """Whether the library was built with CUDA kernels."""
    return _problem is None and _facts.get('cuda') is not None


def cuda_problem(device: torch.device | None = None) -> str | None:
    """The reason for which the CUDA kernels cannot be used, or None.

    Args:
        device (torch.device | None): On which device. Defaults to the current one.
    """
    if _problem is not None:
        return _problem
    if not has_cuda():
        return f'not built: {_facts["cuda_problem"]}'
    if torch.version.cuda is None or not _loaded().mmvim_cuda_knows_streams():
        return f'torch {torch.__version__} is not built for CUDA'
    if not torch.cuda.is_available():
        return 'torch sees no CUDA device'
    driver, runtime = ctypes.c_int(), ctypes.c_int()
    _loaded().mmvim_cuda_versions(ctypes.byref(driver), ctypes.byref(runtime))
    if driver.value // 1000 < runtime.value // 1000:
        return (
            f'compiled by CUDA {_version(runtime)}, and the driver is one for CUDA '
            f'{_version(driver)}: update it, or build with an nvcc of CUDA '
            f'{driver.value // 1000} (CUDA_HOME)'
        )
    capability = torch.cuda.get_device_capability(device)
    if not any(_runs_on(arch, capability) for arch in _facts['cuda']['archs']):
        number = '.'.join(map(str, capability))
        if capability < OLDEST_CAPABILITY:
            oldest = '.'.join(map(str, OLDEST_CAPABILITY))
            return f'it needs compute capability {oldest}, and the device has {number}'
        return (
            f'compiled for {", ".join(_facts["cuda"]["archs"])}, and the device has compute '
            f'capability {number}; build with TORCH_CUDA_ARCH_LIST={number}'
        )
    return None


def _version(number: ctypes.c_int) -> str:
    return f'{number.value // 1000}.{number.value % 1000 // 10}'


def _runs_on(arch: str, capability: tuple[int, int]) -> bool:
    """Whether code of a kind, like ``sm_90`` or ``compute_100a``, runs on a device."""
    kind, number = arch.split('_')
    digits = number.rstrip('af')
    built = int(digits[:-1]), int(digits[-1])
    if digits != number:  # for this architecture (a) or its family (f) alone
        return built == capability if number[-1] == 'a' else built[0] == capability[0]
    if kind == 'compute':  # the driver compiles it
        return built <= capability
    return built[0] == capability[0] and built[1] <= capability[1]


def info() -> dict[str, Any]:
    """Content of the sidecar, about the library or its absence. Empty without a sidecar."""
    return dict(_facts)


def path() -> Path | None:
    """The library in use, or None."""
    return None if _library is None else _FOLDER / LIBRARY


def build_info() -> dict[str, str | None]:
    """Versions of what the ops run on, and what was compiled; None is what there is not."""
    found: dict[str, str | None] = {
        'torch': str(torch.__version__),
        'torch_cuda': torch.version.cuda,
        'python': platform.python_version(),
        'cpu_capability': torch.backends.cpu.get_cpu_capability(),
        'native_library': None,
    }
    if _library is None:
        return found
    sources = 'not installed'
    if source_files():
        same = sources_digest() == _facts.get('sources')
        sources = 'those of the library' if same else 'other than those of the library: build again'
    cuda = _facts['cuda']
    return found | {
        'native_library': str(path()),
        'compiler': _facts['compiler'],
        'torch_headers': _facts['torch'],
        'sources': sources,
        'isas': ', '.join(isas()),
        'isa': isa(),
        'nvcc': cuda and cuda['nvcc'],
        'cuda_archs': cuda and ', '.join(cuda['archs']),
        'cuda_decays': cuda and f'{cuda["decays"]} in float32',
    }


def isas() -> tuple[str, ...]:
    """Instruction sets of the CPU kernels that this machine can run, best first.

    Raises:
        RuntimeError: There is no library; the message says why.
    """
    return tuple(_loaded().mmvim_ops_isas().decode().split(','))


def isa() -> str:
    """The instruction set that the CPU kernels use; raises as :func:`isas`."""
    return str(_loaded().mmvim_ops_isa().decode())


def use_isa(name: str) -> None:
    """Let the CPU kernels use another instruction set, from the next call on.

    Raises:
        RuntimeError: There is no library; the message says why.
        ValueError: The name is unknown, or this machine cannot run it.
    """
    global isa_problem
    if name not in isas() or _loaded().mmvim_ops_use_isa(name.encode()) != 0:
        raise ValueError(
            f'instruction set {name!r} is unknown or cannot run here; valid: {", ".join(isas())}'
        )
    isa_problem = None


def force_splits(
    forward: int = 0, backward: int = 0, if_it_fits: bool = False, general: bool = False
) -> None:
    """Let the CUDA scans give a channel so many threads a direction, for tests and measurements.

    Args:
        forward (int): 1, 2, 4, 8 or 16. Defaults to 0: the rule decides.
        backward (int): 4, 8 or 16, or 1 where N = 1. Defaults to 0: the rule decides.
        if_it_fits (bool): The rule decides as well where a device has too little shared memory for
            such a kernel; otherwise the scan raises. Defaults to False.
        general (bool): Leave out the kernels that serve blocks of a Vim alone. Defaults to False.

    Raises:
        RuntimeError: There are no CUDA kernels; the message says why.
    """
    if not has_cuda():
        raise RuntimeError(f'there are no CUDA kernels: {cuda_problem()}')
    _loaded().mmvim_cuda_force_splits(forward, backward, if_it_fits, general)


@contextlib.contextmanager
def fitting_splits(forward: int, backward: int, general: bool) -> Iterator[None]:
    """As :func:`force_splits` where they fit, while it lasts."""
    force_splits(forward, backward, if_it_fits=True, general=general)
    try:
        yield
    finally:
        force_splits()


def exp_many(data: Tensor, repeats: int) -> None:
    """Write exp of the first half of ``data`` into the second, as the kernels compute it.

    Args:
        data (Tensor): float32, contiguous, on the CPU, with twice as many elements as a multiple of
            64.
        repeats (int): How often to do so.

    Raises:
        RuntimeError: There is no library; the message says why.
    """
    _loaded().mmvim_ops_exp_many(data.data_ptr(), data.numel(), repeats)


try:
    _library = _load(_FOLDER)
    if os.environ.get('MMVIM_CPU_ISA'):
        use_isa(os.environ['MMVIM_CPU_ISA'])
except _Unusable as error:
    _problem = str(error)
except ValueError as error:
    isa_problem = f'MMVIM_CPU_ISA: {error}'
