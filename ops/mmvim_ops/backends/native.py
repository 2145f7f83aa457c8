"""The ops on compiled kernels: one pass over the inputs, everything fused, nothing flipped.

The kernels themselves are under ``csrc``; :mod:`mmvim_ops.loading` loads them, and
:mod:`mmvim_ops.library` declares their operators.
"""

from __future__ import annotations

import warnings
from functools import partial

import torch
from torch import Tensor

from mmvim_ops import loading, self_check
from mmvim_ops.backends.backend import WholeBlock
from mmvim_ops.backends.chunked import CHUNKED
from mmvim_ops.backends.operators import OperatorBackend
from mmvim_ops.checks import are_alike
from mmvim_ops.differentiation import is_plain_call
from mmvim_ops.library import COMPILED, VIM_BLOCK
from mmvim_ops.scan_inputs import BlockWeights

__all__ = ['CPU', 'CUDA', 'SPLITS']

# Threads a channel, forwards and backwards, and whether kernels for Vim alone are left out: each
# kernel at least once, by the states it is for.
SPLITS = {
    16: [
        *((1, 4, True), (2, 8, True), (4, 16, True), (8, 8, True), (16, 8, True)),
        *((4, 8, False), (8, 16, False), (16, 8, False)),
    ],
    1: [(1, 1, True), (8, 8, True)],
}


class Native(OperatorBackend):
    """Compiled kernels of a kind of device.

    Args:
        name (str): The kind of device, and what ``backend=`` calls them.
        chunk (int): Tokens between two states saved for a backward pass. A shorter chunk saves
            more, a longer one takes more fast memory (the cache of a CPU, a block's shared memory
            on a GPU) when the backward pass rebuilds its states.
        widens_half (bool): float16 has no kernels and becomes float32. Defaults to False.
        room (tuple[int, int] | None): The most states and the largest dt rank that the scans have
            room for. Defaults to None: no limit.
        conv_width (int | None): See :class:`OperatorBackend`. Defaults to None.
    """

    def __init__(
        self,
        name: str,
        chunk: int,
        widens_half: bool = False,
        room: tuple[int, int] | None = None,
        conv_width: int | None = None,
    ) -> None:
        super().__init__(COMPILED)
        self.name, self.conv_width = name, conv_width
        self.chunk, self.widens_half, self.room = chunk, widens_half, room
        self._problems: dict[torch.device, str | None] = {}

    @property
    def note(self) -> str:
        """See :attr:`Backend.note`."""
        return f'native kernels, now {loading.isa()}' if self.name == 'cpu' else 'native kernels'

    def unavailable(self, device: torch.device | None = None) -> str | None:
        """See :meth:`Backend.unavailable`; on a device, by default the current one."""
        return loading.cuda_problem(device) if self.name == 'cuda' else loading.problem()

    def problem(
        self, device: torch.device, dtype: torch.dtype, states: int = 0, rank: int = 0
    ) -> str | None:
        """See :meth:`Backend.problem`."""
        return self._mismatch(device, dtype, states, rank) or self.unavailable(device)

    def _mismatch(
        self, device: torch.device, dtype: torch.dtype, states: int, rank: int
    ) -> str | None:
        """The part of a call that has no kernels on any machine, or None."""
        if device.type != self.name:
            return f'it needs {self.name.upper()} tensors, and the inputs are on {device}'
        if dtype == torch.float64:
            return 'it has no float64 kernels'
        if self.room is not None and (states > self.room[0] or rank > self.room[1]):
            return (
                f'it takes up to {self.room[0]} states and a dt rank up to {self.room[1]}, got '
                f'{states} and {rank}'
            )
        return None

    def serves(
        self, device: torch.device, dtype: torch.dtype, states: int = 0, rank: int = 0
    ) -> bool:
        """See :meth:`Backend.serves`; warns once a device where kernels should serve it.

        Raises:
            RuntimeError: ``MMVIM_CPU_ISA`` names what cannot run here: another instruction set, or
                another backend, would not be what was asked for.
        """
        if device.type != self.name or self._mismatch(device, dtype, states, rank) is not None:
            return False
        cuda = self.name == 'cuda'
        if not cuda and loading.isa_problem is not None:
            raise RuntimeError(loading.isa_problem)
        if torch.compiler.is_compiling():  # does not trace into questions about a device
            return loading.has_cuda() if cuda else loading.problem() is None
        if device not in self._problems:
            problem = self.unavailable(device)
            if problem is not None:
                if loading.is_wanted():
                    what = 'CUDA kernels' if cuda else 'native library'
                    warnings.warn(f'mmvim_ops runs without its {what}: {problem}', stacklevel=4)
            elif cuda and torch.cuda.is_current_stream_capturing():
                return True  # a graph cannot be asked to compare numbers on the way
            elif cuda:
                problem = _fault(self, device)
                if problem is not None:
                    warnings.warn(
                        f'the CUDA kernels of mmvim_ops cannot be used on {device}: {problem}; '
                        'auto takes another backend. Please report it',
                        stacklevel=4,
                    )
            self._problems[device] = problem
        return self._problems[device] is None

    def chunk_length(self, x: Tensor, states: int, directions: int, saves: bool) -> int:
        """See :meth:`OperatorBackend.chunk_length`; without a backward pass, all tokens."""
        # Traced with gradients on and checked with gradients off, a graph must be the same.
        return self.chunk if saves or torch.jit.is_tracing() else x.shape[1]

    def whole_block(self, x: Tensor, weights: BlockWeights) -> WholeBlock | None:
        """See :meth:`Backend.whole_block`."""
        tensors = [tensor for tensor in weights.flat() if tensor is not None]
        runs = (
            self.name == 'cpu'
            and x.dtype == torch.float32
            and are_alike(x, tensors)
            and is_plain_call(x, *tensors)
            and not torch.is_autocast_enabled('cpu')
        )
        return _whole_block if runs else None

    def readable(self, tensor: Tensor | None) -> Tensor | None:
        """See :meth:`OperatorBackend.readable`."""
        if self.widens_half and tensor is not None and tensor.dtype == torch.float16:
            return tensor.float()
        return tensor


def _fault(backend: Native, device: torch.device) -> str | None:
    """What is wrong with any of the CUDA kernels on a device, or None."""
    forms = {
        states: [partial(loading.fitting_splits, *splits) for splits in every]
        for states, every in SPLITS.items()
    }
    numbers = (16, 1, 5)  # those with kernels of their own, and one of the others
    try:
        return self_check.difference(
            backend, CHUNKED, device, numbers_of_states=numbers, cases=self_check.CASES, forms=forms
        )
    except torch.OutOfMemoryError:
        raise  # says nothing of the kernels
    except RuntimeError as error:  # of a launch
        return str(error)


def _whole_block(x: Tensor, weights: BlockWeights, eps: float, scale: float) -> Tensor:
    return VIM_BLOCK(x, *weights.flat(), float(eps), float(scale))


CPU = Native('cpu', chunk=64, widens_half=True)
# kMostStates and kMostRank of csrc/cuda/scan.h, kConvWidth of conv.h.
CUDA = Native('cuda', chunk=128, room=(32, 128), conv_width=4)
