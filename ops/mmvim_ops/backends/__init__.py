"""The implementations behind ``backend=``: which exist, which can serve a call, and why not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch

from mmvim_ops.backends.backend import Backend
from mmvim_ops.backends.chunked import CHUNKED
from mmvim_ops.backends.mamba_ssm import MAMBA_SSM
from mmvim_ops.backends.native import CPU, CUDA
from mmvim_ops.backends.reference import REFERENCE
from mmvim_ops.backends.triton import TRITON

__all__ = ['BACKENDS', 'ORDER', 'BackendStatus', 'available_backends', 'override', 'select']

# Which auto prefers. 'chunked' serves every call, so that it never takes one behind it.
ORDER: tuple[Backend, ...] = (CUDA, TRITON, CPU, CHUNKED, REFERENCE, MAMBA_SSM)
BACKENDS = ('auto', *(backend.name for backend in ORDER))

_override: ContextVar[str | None] = ContextVar('mmvim_ops_backend', default=None)


class BackendStatus(NamedTuple):
    """Whether a backend can run on this machine.

    Attributes:
        available (bool): It can, given inputs it supports.
        note (str): What it is, or why it cannot run.
    """

    available: bool
    note: str


def available_backends() -> dict[str, BackendStatus]:
    """Say for every backend whether it can run on this machine, and why not.

    Returns:
        Name to status, in the order of :data:`BACKENDS` without ``auto``.
    """
    problems = {backend: backend.unavailable() for backend in ORDER}
    return {
        backend.name: BackendStatus(problem is None, problem or backend.note)
        for backend, problem in problems.items()
    }


@contextmanager
def override(backend: str) -> Iterator[None]:
    """Have all ops take a backend, whichever they are asked for; in this thread alone.

    Args:
        backend (str): One of :data:`BACKENDS`.
    """
    token = _override.set(backend)
    try:
        yield
    finally:
        _override.reset(token)


def select(
    backend: str, device: torch.device, dtype: torch.dtype, states: int = 0, rank: int = 0
) -> Backend:
    """The backend that serves a call.

    Args:
        backend (str): One of :data:`BACKENDS`. ``auto`` takes the first that can serve the call;
            any other runs or raises.
        device (torch.device): Where the inputs are.
        dtype (torch.dtype): The dtype of the scanned input.
        states (int): States N of a scan. Defaults to 0: no scan.
        rank (int): Rank R of the projection of a scan's steps. Defaults to 0: none.

    Raises:
        ValueError: The name is unknown.
        RuntimeError: The backend is known and cannot serve the call; the message says why.
    """
    if not torch.compiler.is_compiling():  # which does not trace into the question
        backend = _override.get() or backend
    if backend == 'auto' and torch.onnx.is_in_onnx_export():
        return REFERENCE  # the others call operators of ours, which ONNX does not have
    for candidate in ORDER:
        if backend == 'auto':
            if candidate.serves(device, dtype, states, rank):
                return candidate
        elif backend == candidate.name:
            problem = candidate.problem(device, dtype, states, rank)
            if problem is not None:
                raise RuntimeError(
                    f"backend={backend!r} cannot serve this call: {problem}; try 'auto'"
                )
            return candidate
    raise ValueError(f'backend={backend!r} is unknown; valid: {", ".join(BACKENDS)}')
