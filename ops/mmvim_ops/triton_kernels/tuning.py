"""Which form of a scan kernel is launched: a table, or what is fastest where a user asks for it.

Needs no triton to import. Nothing of the table was measured on a GPU.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from itertools import product
from typing import NamedTuple

import torch

__all__ = [
    'TUNES',
    'Launch',
    'Work',
    'candidates',
    'default',
    'fastest',
    'is_capturing',
    'launch',
    'problem',
]

_log = logging.getLogger(__name__)
# Whether kernels are measured in all their forms before the first call of a kind.
_VALUE = os.environ.get('MMVIM_TRITON_TUNE', '')
TUNES = _VALUE == '1'


def problem() -> str | None:
    """What is wrong with the value of MMVIM_TRITON_TUNE, or None."""
    if _VALUE in ('', '0', '1'):
        return None
    return (
        f'MMVIM_TRITON_TUNE={_VALUE} is not valid: set 1 to measure the kernels, 0 or nothing to '
        'take the table'
    )


class Launch(NamedTuple):
    """The form of a kernel.

    Attributes:
        channels (int): Channels of a thread of a forward pass, which share what is loaded of dt, B
            and C. A backward pass has one. Defaults to 1.
        warps (int): Warps of a program, which share a multiprocessor's cache. A backward pass has
            one. Defaults to 1.
        held (int): Tokens whose states a thread of a backward pass holds in registers. Defaults to
            1.
    """

    channels: int = 1
    warps: int = 1
    held: int = 1


class Work(NamedTuple):
    """What the choice may depend on.

    Attributes:
        kernel (str): 'forward' or 'backward'.
        dtype (torch.dtype): Of the scanned input.
        states (int): N.
        rank (int): R where dt is projected, or 0.
        size (int): B L E.
    """

    kernel: str
    dtype: torch.dtype
    states: int
    rank: int
    size: int


class _Row(NamedTuple):
    """A launch of a kernel for up to so many bytes of a number, and states."""

    kernel: str
    itemsize: int
    states: int
    launch: Launch


# The first that holds. A thread has up to 32 states, which with their rates take half of its
# registers; with few states each, it has as many channels as it loads in eight bytes. Sizes are no
# part of it: few channels are cut into segments, and auto compares on a small one what it takes.
_TABLE = (
    _Row('forward', 2, 4, Launch(channels=4)),
    _Row('forward', 4, 16, Launch(channels=2)),
    _Row('forward', 4, 32, Launch(channels=1)),
    _Row('backward', 4, 4, Launch(held=4)),
    _Row('backward', 4, 16, Launch(held=2)),
    _Row('backward', 4, 32, Launch(held=1)),
)
# What a thread has registers for: states of all its channels, and of all tokens that it holds.
_MOST_STATES, _MOST_HELD = 64, 32

_measured: dict[tuple[torch.device, Work], Launch] = {}


def default(work: Work) -> Launch:
    """The launch that the table has."""
    return next(
        row.launch
        for row in _TABLE
        if row.kernel == work.kernel
        and row.itemsize >= work.dtype.itemsize
        and row.states >= work.states
    )


def candidates(work: Work) -> list[Launch]:
    """All launches worth a measurement."""
    if work.kernel == 'forward':
        each = [number for number in (1, 2, 4) if number * work.states <= _MOST_STATES]
        return [Launch(channels, warps) for channels, warps in product(each, (1, 4))]
    return [Launch(held=number) for number in (1, 2, 4) if number * work.states <= _MOST_HELD]


def fastest(
    launches: Iterable[Launch], milliseconds: Callable[[Launch], float]
) -> tuple[Launch, dict[Launch, float]]:
    """The launch that takes least, the earlier of equals, and what each took."""
    found = {each: milliseconds(each) for each in launches}
    return min(found, key=lambda each: found[each]), found


def launch(work: Work, device: torch.device, trial: Callable[[Launch], object]) -> Launch:
    """The launch for a call.

    With ``MMVIM_TRITON_TUNE=1``, the first call of a kind (sizes to the next power of two count as
    one) measures all, and the log says what each took. Not while a graph is captured.

    Args:
        work (Work): What is to be done.
        device (torch.device): The current device.
        trial (Callable[[Launch], object]): Does it, as often as it is called.
    """
    if not TUNES or not work.size or is_capturing(device):
        return default(work)
    kind = device, work._replace(size=1 << (work.size - 1).bit_length())
    if kind not in _measured:
        from triton.testing import do_bench

        def milliseconds(each: Launch) -> float:
            return float(do_bench(lambda: trial(each), return_mode='median'))

        chosen, found = fastest(candidates(work), milliseconds)
        _log.warning(  # shown where nobody has set up logging
            'MMVIM_TRITON_TUNE on %s, %s: %s; the table has %s; ms: %s',
            *(_name(device), work, chosen, default(work)),
            ', '.join(f'{tuple(each)} {took:.3f}' for each, took in found.items()),
        )
        _measured[kind] = chosen
    return _measured[kind]


def is_capturing(device: torch.device) -> bool:
    """Whether a graph is captured, in which nothing can be measured or compared."""
    return device.type == 'cuda' and torch.cuda.is_current_stream_capturing()


def _name(device: torch.device) -> str:
    module = getattr(torch, device.type)
    return f'{module.get_device_name(device)}, torch {torch.__version__}'
