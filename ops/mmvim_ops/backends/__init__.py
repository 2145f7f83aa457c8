"""The implementations behind ``backend=``: which exist, which can serve a call, and why not."""

from __future__ import annotations

import importlib
import platform
import warnings
from types import ModuleType
from typing import NamedTuple

import torch

from mmvim_ops import loading, reference
from mmvim_ops.backends import chunked
from mmvim_ops.backends import mamba_ssm as mamba_adapter
from mmvim_ops.backends import native as fused

__all__ = ['BACKENDS', 'BackendStatus', 'available_backends', 'build_info', 'select']

BACKENDS = ('auto', 'cuda', 'cpu', 'chunked', 'reference', 'mamba_ssm')
_IMPLEMENTATIONS: dict[str, ModuleType] = {
    'cuda': fused,
    'cpu': fused,
    'chunked': chunked,
    'reference': reference,
    'mamba_ssm': mamba_adapter,
}


# What the CUDA scans have room for: kMostStates and kMostRank of csrc/cuda/scan.h.
_CUDA_STATES, _CUDA_RANK = 32, 128
# What the CUDA kernels compute otherwise than pure torch, by device; None where nothing.
_differences: dict[torch.device, str | None] = {}


class BackendStatus(NamedTuple):
    """Whether a backend can run on this machine.

    Attributes:
        available: It can, given inputs it supports.
        note: What it is, or why it cannot run.
    """

    available: bool
    note: str


def _mamba_ssm_problem() -> str | None:
    """Why the scan of mamba-ssm cannot be imported, or None."""
    try:
        module = importlib.import_module('mamba_ssm.ops.selective_scan_interface')
    except Exception as error:  # a binary built for another torch fails with more than ImportError
        return f'mamba-ssm cannot be imported ({type(error).__name__}: {error})'
    if not hasattr(module, 'selective_scan_fn'):
        return 'the installed mamba-ssm has no selective_scan_fn'
    return None


def _cuda_takes(states: int, rank: int) -> bool:
    return states <= _CUDA_STATES and rank <= _CUDA_RANK


def _cuda_serves(device: torch.device) -> bool:
    """Whether ``auto`` takes the CUDA kernels on a device; warns once where it should be able."""
    if not loading.cuda_usable(device):
        return False
    # Neither a compiler nor a graph can be asked to compare numbers on the way.
    if torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing():
        return True
    if device not in _differences:
        from mmvim_ops import self_check

        _differences[device] = self_check.difference(device)
        if _differences[device] is not None:
            warnings.warn(
                f'the CUDA kernels of mmvim_ops are wrong on {device}: {_differences[device]}; '
                "auto takes 'chunked'. Please report it",
                stacklevel=4,
            )
    return _differences[device] is None


def available_backends() -> dict[str, BackendStatus]:
    """Say for every backend whether it can run on this machine, and why not.

    Returns:
        Name to status, in the order of :data:`BACKENDS` without ``auto``.
    """
    problem = _mamba_ssm_problem()
    if problem is None and not torch.cuda.is_available():
        problem = 'needs CUDA tensors, and torch sees no CUDA device'
    cpu, cuda = loading.problem(), loading.cuda_problem()
    return {
        'cuda': BackendStatus(cuda is None, cuda or 'native kernels'),
        'cpu': BackendStatus(cpu is None, cpu or f'native kernels, now {loading.isa()}'),
        'chunked': BackendStatus(
            True, 'pure torch, any device; what auto takes without native kernels'
        ),
        'reference': BackendStatus(True, 'token loop, any device; the specification'),
        'mamba_ssm': BackendStatus(problem is None, problem or 'scan kernels of mamba-ssm'),
    }


def build_info() -> dict[str, str | None]:
    """Versions of what the ops run on, and what was compiled; None is what there is not."""
    found: dict[str, str | None] = {
        'torch': str(torch.__version__),
        'torch_cuda': torch.version.cuda,
        'python': platform.python_version(),
        'cpu_capability': torch.backends.cpu.get_cpu_capability(),
        'native_library': None,
    }
    path = loading.path()
    if path is None:
        return found
    facts = loading.info()
    cuda = facts['cuda']
    return found | {
        'native_library': str(path),
        'compiler': facts['compiler'],
        'torch_headers': facts['torch'],
        'sources': loading.sources_state(),
        'isas_built': ', '.join(facts['isas']),
        'isas_usable': ', '.join(loading.isas()),
        'isa': loading.isa(),
        'nvcc': cuda and cuda['nvcc'],
        'cuda_archs': cuda and ', '.join(cuda['archs']),
    }


def select(
    backend: str, device: torch.device, dtype: torch.dtype, states: int = 0, rank: int = 0
) -> ModuleType:
    """The implementation that serves a call.

    Args:
        backend: One of :data:`BACKENDS`. ``auto`` takes the fastest that can serve the call; any
            other runs or raises.
        device: Where the inputs are.
        dtype: The dtype of the scanned input.
        states: States N of a scan. Defaults to 0: no scan.
        rank: Rank R of the projection of a scan's steps. Defaults to 0: none.

    Raises:
        ValueError: The name is unknown.
        RuntimeError: The backend is known and cannot serve the call; the message says why.
    """
    if backend not in BACKENDS:
        raise ValueError(f'backend={backend!r} is unknown; valid: {", ".join(BACKENDS)}')
    if backend == 'auto':
        if dtype == torch.float64:
            return chunked
        if device.type == 'cuda':
            return fused if _cuda_takes(states, rank) and _cuda_serves(device) else chunked
        return fused if device.type == 'cpu' and loading.usable() else chunked
    problem = None
    if backend in ('cuda', 'cpu', 'mamba_ssm'):
        kind = 'cpu' if backend == 'cpu' else 'cuda'
        if device.type != kind:
            problem = f'it needs {kind.upper()} tensors, and the inputs are on {device}'
        elif dtype == torch.float64:
            problem = 'it has no float64 kernels'
        elif backend == 'mamba_ssm':
            problem = _mamba_ssm_problem()
        elif backend == 'cpu':
            problem = loading.problem()
        elif not _cuda_takes(states, rank):
            problem = (
                f'it takes up to {_CUDA_STATES} states and a dt rank up to {_CUDA_RANK}, got '
                f'{states} and {rank}'
            )
        else:
            problem = loading.cuda_problem(device)
    if problem is not None:
        raise RuntimeError(f"backend={backend!r} cannot serve this call: {problem}; try 'auto'")
    return _IMPLEMENTATIONS[backend]
