"""Ceilings of the machine: copies and exponentials, measured in the same run."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import torch

from benchmarking.timing import Effort, Timing, interleave
from mmvim_ops import loading

# Special-function results a clock of one multiprocessor: sm_80 to sm_120 (CUDA C++ programming
# guide, arithmetic instructions).
MUFU_PER_CLOCK = 16
_L1_FLOATS, _REPEATS = 4096, 500  # 16 KiB
_SMALL_FLOATS = 32768  # a thread's share of one torch.exp; stays in a second-level cache
_CPU_COPY, _CUDA_COPY = 1 << 28, 1 << 30
_SECONDS_OF_LOAD, _CALLS_IN_FLIGHT = 1.0, 20
_CUDA_FLOATS, _EX2_REPEATS = 1 << 22, 256
# x = 2^-x again and again, in registers, from wherever it begins to 0.641.
_EX2_KERNEL = f"""
template <typename T> T ex2_loop(T x) {{
  #pragma unroll 16
  for (int i = 0; i < {_EX2_REPEATS}; ++i)
    asm volatile("{{ .reg .f32 y; neg.f32 y, %0; ex2.approx.ftz.f32 %0, y; }}" : "+f"(x));
  return x;
}}
"""


class ExpLoop(NamedTuple):
    """A loop of nothing but exponentials: name, a call, and exponentials a call in all threads."""

    name: str
    call: Callable[[], object]
    count: int


def copy_bandwidth(device: torch.device, effort: Effort) -> float:
    """Bytes read and written per second by a copy far larger than any cache, with all threads."""
    size = _CUDA_COPY if device.type == 'cuda' else _CPU_COPY
    source = torch.ones(size // 4, device=device)
    target = torch.zeros_like(source)
    timing = interleave({'copy': lambda: target.copy_(source)}, device, effort)['copy']
    if not isinstance(timing, Timing):
        raise MemoryError(f'no room for the two buffers of {size} bytes of the copy')
    return 2 * size / timing.median


def exp_loops(device: torch.device) -> list[ExpLoop]:
    """The loops to run beside the scans; the first one is the ceiling.

    On a CPU that is the native library's own vectorised exponential over a buffer in the first
    cache, one thread, where the library is loaded; then ``torch.exp``. On a GPU a kernel that
    takes powers of numbers in registers; it shows whether :func:`mufu_rate`, the ceiling there,
    follows from the right clock.
    """
    if device.type == 'cuda':
        return [_cuda_exp_loop(torch.rand(_CUDA_FLOATS, device=device))]
    floats = _SMALL_FLOATS * torch.get_num_threads()
    values, out = -torch.rand(floats), torch.empty(floats)
    loops = [ExpLoop('torch.exp', lambda: torch.exp(values, out=out), floats)]
    if loading.problem() is None:
        buffer = -torch.rand(_L1_FLOATS)
        # It reads one half and writes the other. One thread runs it; with more of them the
        # ceiling is a multiple of its rate.
        count = _L1_FLOATS // 2 * _REPEATS * torch.get_num_threads()
        call = partial(loading.exp_many, buffer, _REPEATS)
        loops.insert(0, ExpLoop('native exp', call, count))
    return loops


def _cuda_exp_loop(source: torch.Tensor) -> ExpLoop:
    kernel = torch.cuda.jiterator._create_jit_fn(_EX2_KERNEL)
    try:
        kernel(source)  # compiled now
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        print(f'torch.exp2 in place of a loop in registers: {reason}', file=sys.stderr)
        # Bound by the second-level cache.
        return ExpLoop('torch.exp2', lambda: torch.exp2(source), source.numel())
    return ExpLoop('ex2 loop', lambda: kernel(source), source.numel() * _EX2_REPEATS)


def mufu_rate(multiprocessors: int, megahertz: float) -> float:
    """Exponentials per second of a GPU's special-function units at a clock."""
    return multiprocessors * MUFU_PER_CLOCK * megahertz * 1e6


def clock_under_load(device: torch.device) -> float | None:
    """Clock of the multiprocessors in MHz while they compute; None where the driver is silent.

    The driver is asked by a program that takes a while to answer: the loop of exponentials goes on
    until it has, and begins a second before it is asked.
    """
    (loop, *_) = exp_loops(device)
    begin = time.perf_counter()
    with ThreadPoolExecutor(1) as pool:
        clocks: Future[tuple[float, float] | None] | None = None
        while clocks is None or not clocks.done():
            for _ in range(_CALLS_IN_FLIGHT):
                loop.call()
            torch.cuda.synchronize(device)
            if clocks is None and time.perf_counter() - begin >= _SECONDS_OF_LOAD:
                clocks = pool.submit(sm_clocks, device)
        answer = clocks.result()
    return None if answer is None else answer[0]


def sm_clocks(device: torch.device) -> tuple[float, float] | None:
    """Present and highest clock of the multiprocessors in MHz; None where the driver is silent."""
    # By its name and not by its number, which CUDA_VISIBLE_DEVICES changes for torch alone.
    uuid = getattr(torch.cuda.get_device_properties(device), 'uuid', None)
    which = [] if uuid is None else [f'--id=GPU-{uuid}']
    command = ['nvidia-smi', *which, '--query-gpu=clocks.sm,clocks.max.sm']
    try:
        result = subprocess.run(
            [*command, '--format=csv,noheader,nounits'],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        now, highest = (float(value) for value in result.stdout.strip().split(','))
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return now, highest
