"""What all kernels are made with: helpers on the device, and tensors as kernels take them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

__all__ = [
    'VARYING',
    'Rows',
    'device_function',
    'guard',
    'is_interpreted',
    'multiprocessors',
    'rows',
    'wanted',
    'warp',
]


_log = logging.getLogger(__name__)
# Sizes that change from call to call. Triton would compile a kernel anew for one that is 1, or is a
# multiple of 16 where the one before was not.
VARYING = [
    'batches',
    'chunk',
    'first_batch',
    'launched_batches',
    'length',
    'rows_each',
    'segment_length',
    'segments',
]
# Kernels ask the same, when they are imported.
_INTERPRETED = bool(triton.knobs.runtime.interpret)


def _report(*, src: Any, times: Any, cache_hit: bool, **others: Any) -> None:
    """Say how long triton took to compile a kernel of ours: a first call would seem to hang."""
    kernel: Any = getattr(src, 'fn', None)
    if not cache_hit and getattr(kernel, 'module', '').startswith('mmvim_ops.'):
        _log.info('compiled %s in %.0f s', kernel.fn.__name__, times.total / 1e6)


if triton.knobs.compilation.listener is None:  # nobody else listens
    triton.knobs.compilation.listener = _report


def is_interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, which TRITON_INTERPRET=1 chose at the import."""
    return _INTERPRETED


def device_function(function: Callable[..., Any]) -> Any:
    """A function that kernels call.

    The interpreter wraps the whole language once more with every call of a function that is
    decorated for it, so that a loop over tokens would go slower and slower; a plain one it follows.
    """
    return function if is_interpreted() else triton.jit(function)


class Rows(NamedTuple):
    """A tensor whose last dimension lies together, as a kernel takes it.

    Attributes:
        data (Tensor): The tensor; in a kernel, a pointer to its first element.
        batch (int): Elements from one sequence to the next.
        row (int): From one token, or one saved state, to the next.
        group (int): From one group to the next. Defaults to 0: there are no groups.
    """

    data: Any
    batch: int
    row: int
    group: int = 0


def rows(tensor: Tensor) -> Rows:
    """(B, L, E) or (B, L, G, N), copied where its last dimension is spread."""
    if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
        tensor = tensor.contiguous()
    strides = tensor.stride()
    return Rows(tensor, strides[0], strides[1], strides[2] if tensor.dim() == 4 else 0)


def warp() -> int:
    """Threads of a warp of the current device; any number will do in the interpreter."""
    if is_interpreted():
        return 32
    return int(triton.runtime.driver.active.get_current_target().warp_size)


def multiprocessors(device: torch.device) -> int:
    """Of a GPU; 0 where there is none."""
    if device.type == 'cuda':
        return torch.cuda.get_device_properties(device).multi_processor_count
    if device.type == 'xpu':
        return int(torch.xpu.get_device_properties(device).gpu_subslice_count)
    return 0


def guard(device: torch.device) -> AbstractContextManager[object]:
    """Makes a device the current one: kernels run there."""
    context: AbstractContextManager[object] = nullcontext()
    if device.type in ('cuda', 'xpu'):
        context = getattr(torch, device.type).device(device)
    return context


def wanted(
    grads: Sequence[Tensor | None], inputs: Sequence[Any], needs: Sequence[bool]
) -> tuple[Tensor, ...]:
    """The gradient of every input in its dtype, empty where it is not needed."""
    return tuple(
        inputs[0].new_empty(0)
        if grad is None or given is None or not need
        else grad.to(given.dtype)
        for grad, given, need in zip(grads, inputs, needs)
    )
