"""The ops on kernels in Triton: GPUs of any make, compiled at the first call, without nvcc.

The kernels are under :mod:`mmvim_ops.triton_kernels`, which is imported by the first call: without
triton there is nothing to import.
"""

from __future__ import annotations

import importlib
import logging
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from mmvim_ops import library, self_check
from mmvim_ops.backends.chunked import CHUNKED
from mmvim_ops.backends.operators import OperatorBackend
from mmvim_ops.triton_kernels import tuning

__all__ = ['TRITON']

_log = logging.getLogger(__name__)
_NAMESPACE = 'mmvim_triton'
_GPUS = ('cuda', 'xpu')  # torch calls AMD's cuda
# The module of every op's kernels.
_MODULES = {
    'selective_scan': 'scans',
    'bidirectional_selective_scan': 'scans',
    'conv1d_silu': 'conv',
    'bi_conv1d_silu': 'conv',
    'add_rms_norm': 'norm',
}
_MOST_STATES = 32
_OLDEST = '3.7'
# Triton's own switch: kernels in its interpreter, on tensors anywhere.
INTERPRETED = os.environ.get('TRITON_INTERPRET', '').lower() in ('1', 'true', 'yes', 'on', 'y')


class Triton(OperatorBackend):
    """Operators whose kernels are Triton's on a GPU."""

    name = 'triton'
    chunk = 64

    def __init__(self) -> None:
        super().__init__(library.register(_NAMESPACE))
        self._problems: dict[tuple[torch.device, torch.dtype, int], str | None] = {}

    @property
    def note(self) -> str:
        """See :attr:`Backend.note`."""
        if INTERPRETED:
            return "kernels in Triton's interpreter, which TRITON_INTERPRET=1 asks for: very slow"
        return 'kernels in Triton, compiled at the first call'

    def unavailable(self) -> str | None:
        """See :meth:`Backend.unavailable`."""
        problem = _import_problem()
        if problem is None and not (INTERPRETED or any(map(_has, _GPUS))):
            problem = (
                'it needs a GPU, and torch sees none (TRITON_INTERPRET=1 has it interpreted on '
                'CPU tensors, for tests)'
            )
        return problem

    def problem(
        self, device: torch.device, dtype: torch.dtype, states: int = 0, rank: int = 0
    ) -> str | None:
        """See :meth:`Backend.problem`."""
        return self._mismatch(device, dtype, states) or _import_problem()

    def _mismatch(self, device: torch.device, dtype: torch.dtype, states: int) -> str | None:
        """The part of a call that has no kernels on any machine, or None."""
        if device.type not in _GPUS and not (INTERPRETED and device.type == 'cpu'):
            return f'it needs tensors on a GPU, and the inputs are on {device}'
        if dtype == torch.float64:
            return 'it has no float64 kernels'
        if states > _MOST_STATES:
            return f'it takes up to {_MOST_STATES} states, got {states}'
        return None

    def serves(
        self, device: torch.device, dtype: torch.dtype, states: int = 0, rank: int = 0
    ) -> bool:
        """See :meth:`Backend.serves`: never in the interpreter, and only if numbers are right."""
        if INTERPRETED or self._mismatch(device, dtype, states) is not None:
            return False
        if torch.compiler.is_compiling():  # does not trace into questions about a device
            return _import_problem() is None
        # Kernels of all dtypes and states would take minutes to compile. Ops without states
        # come with a single one, whose scans are compiled soonest.
        kind = (device, dtype, states or 1)
        if kind not in self._problems:
            problem = _import_problem()
            if problem is None:
                if tuning.is_capturing(device):
                    return True  # a graph cannot be asked to compare numbers on the way
                problem = self._fault(*kind)
                if problem is not None:
                    warnings.warn(
                        f'the Triton kernels of mmvim_ops cannot be used on {device}: {problem}; '
                        'auto takes another backend. Please report it',
                        stacklevel=4,
                    )
            self._problems[kind] = problem
        return self._problems[kind] is None

    def _fault(self, device: torch.device, dtype: torch.dtype, states: int) -> str | None:
        """What is wrong with the kernels of a kind on a device, compilation included."""
        start = time.perf_counter()
        try:
            problem = self_check.difference(self, CHUNKED, device, [dtype], [states])
        except Exception as error:  # of a compiler, a driver, a missing header: no common class
            return f'{type(error).__name__}: {error}'
        seconds = time.perf_counter() - start
        what = f'for {dtype}, {states} states'
        _log.info('Triton kernels compiled and compared on %s %s in %.0f s', device, what, seconds)
        return problem

    def chunk_length(self, x: Tensor, states: int, directions: int, saves: bool) -> int:
        """See :meth:`OperatorBackend.chunk_length`; without a backward pass, all tokens."""
        # Traced with gradients on and checked with gradients off, a graph must be the same.
        return self.chunk if saves or torch.jit.is_tracing() else x.shape[1]


def _has(kind: str) -> bool:
    """Whether torch sees a device of a kind."""
    module = getattr(torch, kind, None)
    return module is not None and bool(module.is_available())


def _import_problem() -> str | None:
    """The reason for which there are no kernels, or None."""
    try:
        version = importlib.import_module('triton').__version__
    except Exception as error:  # a broken installation fails with more than ImportError
        return f'triton cannot be imported ({type(error).__name__}: {error}); pip install triton'
    if TorchVersion(version) < _OLDEST:
        return f'triton {version} is older than {_OLDEST}; upgrade torch, which brings it'
    if INTERPRETED and tuning.TUNES:
        return (
            'MMVIM_TRITON_TUNE=1 measures kernels on a GPU, and TRITON_INTERPRET=1 has them '
            'interpreted; unset one of the two'
        )
    return tuning.problem()


# A compiler does not trace into an import: it is to call the function, and keep what it says. So
# does torch.compiler.assume_constant_result, which would import all of dynamo here.
_import_problem._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _kernel(module: str, name: str) -> Callable[..., Any]:
    """A kernel of an operator, imported when it is called."""

    def run(*args: Any) -> Any:
        return getattr(importlib.import_module(f'mmvim_ops.triton_kernels.{module}'), name)(*args)

    return run


def register(device: str) -> None:
    """Put the kernels in the place of those in pure torch, on a kind of device."""
    for op, module in _MODULES.items():
        for name in (op, f'{op}_backward'):
            torch.library.impl(f'{_NAMESPACE}::{name}', device, _kernel(module, name))


TRITON = Triton()
for _device in (*_GPUS, *(['cpu'] if INTERPRETED else [])):
    register(_device)
