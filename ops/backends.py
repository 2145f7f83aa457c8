"""The implementations behind ``backend=``: which exist, which can serve a call, and why not."""

from __future__ import annotations

import importlib
import platform
from types import ModuleType
from typing import NamedTuple

import torch

from mmvim_ops import chunked, mamba_adapter, reference

__all__ = ['BACKENDS', 'BackendStatus', 'available_backends', 'build_info', 'select']

BACKENDS = ('auto', 'cuda', 'cpu', 'chunked', 'reference', 'mamba_ssm')
_NOT_BUILT = 'not built: this version of mmvim_ops is pure Python'
_IMPLEMENTATIONS: dict[str, ModuleType] = {
    'chunked': chunked,
    'reference': reference,
    'mamba_ssm': mamba_adapter,
}


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


def available_backends() -> dict[str, BackendStatus]:
    """Say for every backend whether it can run on this machine, and why not.

    Returns:
        Name to status, in the order of :data:`BACKENDS` without ``auto``.
    """
    problem = _mamba_ssm_problem()
    if problem is None and not torch.cuda.is_available():
        problem = 'needs CUDA tensors, and torch sees no CUDA device'
    return {
        'cuda': BackendStatus(False, _NOT_BUILT),
        'cpu': BackendStatus(False, _NOT_BUILT),
        'chunked': BackendStatus(True, 'pure torch, any device; what auto takes'),
        'reference': BackendStatus(True, 'token loop, any device; the specification'),
        'mamba_ssm': BackendStatus(problem is None, problem or 'scan kernels of mamba-ssm'),
    }


def build_info() -> dict[str, str | None]:
    """Versions of what the ops run on, and what was compiled (nothing, in pure Python)."""
    return {
        'torch': str(torch.__version__),
        'torch_cuda': torch.version.cuda,
        'python': platform.python_version(),
        'cpu_capability': torch.backends.cpu.get_cpu_capability(),
        'native_library': None,
    }


def select(backend: str, device: torch.device, dtype: torch.dtype) -> ModuleType:
    """The implementation that serves a call.

    Args:
        backend: One of :data:`BACKENDS`. ``auto`` takes the fastest that can serve the call; any
            other runs or raises.
        device: Where the inputs are.
        dtype: The dtype of the scanned input.

    Raises:
        ValueError: The name is unknown.
        RuntimeError: The backend is known and cannot serve the call; the message says why.
    """
    if backend not in BACKENDS:
        raise ValueError(f'backend={backend!r} is unknown; valid: {", ".join(BACKENDS)}')
    if backend == 'auto':
        return chunked
    problem = None
    if backend in ('cuda', 'cpu'):
        problem = _NOT_BUILT
    elif backend == 'mamba_ssm':
        if device.type != 'cuda':
            problem = f'it needs CUDA tensors, and the inputs are on {device}'
        elif dtype == torch.float64:
            problem = 'it has no float64 kernels'
        else:
            problem = _mamba_ssm_problem()
    if problem is not None:
        raise RuntimeError(f"backend={backend!r} cannot serve this call: {problem}; try 'auto'")
    return _IMPLEMENTATIONS[backend]
