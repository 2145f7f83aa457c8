"""The rule that shares the threads of a scan out among states and channels."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import mmvim_ops

# The forward and the backward kernels of 16 states.
FAMILIES = [(1, 2, 4, 8, 16), (4, 8, 16)]
families = pytest.mark.parametrize('splits', FAMILIES, ids=['forward', 'backward'])
H200 = 132
CHANNELS = [1, 3, 64, 192, 384, 1536, 3072, 6144, 12288, 49152, 10**6, 10**9, 10**12]


def choose(
    emulation: Any,
    splits: Sequence[int],
    channels: int,
    shared_bytes: Sequence[int] | None = None,
    states: int = 16,
    multiprocessors: int = H200,
    limit: int = 227 * 1024,
) -> int:
    """The split that the rule takes for so many channels of all sequences."""
    array = ctypes.c_int * len(splits)
    given = array(*(shared_bytes or [1000] * len(splits)))
    chosen: int = emulation.c.mmvim_emulation_choose_split(
        *(1 not in splits, array(*splits), given, len(splits)),
        *(channels, states, multiprocessors, limit),
    )
    return chosen


@families
@pytest.mark.parametrize('multiprocessors', [1, 16, 108, 132, 148])
def test_more_channels_never_take_more_threads(
    splits: Sequence[int], multiprocessors: int, emulation: Any
) -> None:
    """Of numbers that leave no multiprocessor with a block more than another, or all but idle ones.

    With a remainder, smaller blocks may share the work out more evenly.
    """
    chosen = [
        choose(emulation, splits, 4 * multiprocessors * 2**step, multiprocessors=multiprocessors)
        for step in range(20)
    ]
    assert chosen == sorted(chosen, reverse=True)
    assert chosen[0] == 16 and chosen[-1] == splits[0]


@families
def test_few_channels_take_many_threads(splits: Sequence[int], emulation: Any) -> None:
    """A sequence of the tiny model on an H200, which has far more multiprocessors than blocks."""
    for channels in (1, 64, 384):
        assert choose(emulation, splits, channels) == 16


@families
def test_the_order_of_candidates_does_not_matter(splits: Sequence[int], emulation: Any) -> None:
    for channels in CHANNELS:
        assert choose(emulation, splits, channels) == choose(emulation, splits[::-1], channels)


@families
def test_what_does_not_fit_is_never_chosen(splits: Sequence[int], emulation: Any) -> None:
    for channels in CHANNELS:
        for fitting in splits:
            sizes = [1000 if split == fitting else 1001 for split in splits]
            assert choose(emulation, splits, channels, sizes, limit=1000) == fitting
        assert choose(emulation, splits, channels, limit=999) == 0


def test_shared_memory_fits(emulation: Any) -> None:
    """A kernel of each pass fits into what a block may have on the smallest of GPUs, 99 KiB."""
    needed = emulation.shared_bytes
    for splits in FAMILIES:
        backward = 1 not in splits
        for number_bytes in (2, 4):
            for rank in (12, 24, 48):
                least = min(needed(backward, number_bytes, split, 16, rank) for split in splits)
                assert 0 < least <= 99 * 1024, (backward, number_bytes, rank)
    assert needed(True, 2, 2, 16, 12) == 0  # no such kernel


@pytest.mark.parametrize(('backward', 'split', 'blocks'), [(False, 8, 3), (True, 8, 3)])
def test_as_many_blocks_as_there_are_registers_for(
    backward: bool, split: int, blocks: int, emulation: Any
) -> None:
    """Of the kernels that a tiny Vim takes in half precision on a GPU of 228 KiB."""
    assert blocks * (emulation.shared_bytes(backward, 2, split, 16, 12, True) + 1024) <= 228 * 1024


@pytest.mark.parametrize('backward', [False, True])
def test_a_vim_has_kernels_of_its_own(backward: bool, emulated: Any) -> None:
    """At the published sizes, and few threads a channel where there are many sequences."""
    for E, R in ((384, 12), (768, 24), (1536, 48)):
        few, many = (abs(emulated.vim_kernel(backward, B, 4096, E, R)) for B in (1, 64))
        assert few >= many
    assert emulated.vim_kernel(backward, 1, 4096, 384, 12) == -16
    assert emulated.vim_kernel(backward, 8, 4096, 384, 12) == -8


def test_tokens_that_are_not_there_count(emulated: Any) -> None:
    """Of 65 a tile of 64 makes 128, of 32 96."""
    kernels = [emulated.vim_kernel(False, 8, L, 384, 12) for L in (64, 65, 128, 4096)]
    assert kernels[0] < 0 and kernels[2] < 0 and kernels[3] < 0
    assert kernels[1] > 0


def test_a_forced_kernel_that_does_not_fit(
    emulated: Any, scan_inputs: Callable[..., dict[str, Tensor]]
) -> None:
    """Raises, or leaves the choice to the rule if that is asked for."""
    inputs = scan_inputs(L=40, N=16, dtype=torch.float32)
    scan = partial(mmvim_ops.selective_scan, **inputs, delta_softplus=True, backend='cpu')
    expected = scan()
    needed = emulated.shared_bytes
    emulated.use_device(shared_bytes=needed(False, 4, 16, 16, 0))
    emulated.force_splits(1, 4, if_it_fits=True)
    torch.testing.assert_close(scan(), expected)
    emulated.force_splits(1, 4)
    with pytest.raises(RuntimeError, match=r'a block needs .* bytes of shared memory'):
        scan()
    emulated.use_device(shared_bytes=1000)
    emulated.force_splits()
    with pytest.raises(RuntimeError, match='this device has 1000: fewer dt columns'):
        scan()
