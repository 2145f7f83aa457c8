"""Ceilings of the machine: copies and exponentials, measured in the same run."""

from __future__ import annotations

from argparse import Namespace
from functools import cache, partial
from typing import NamedTuple

import torch

from benchmarking.measuring import Call, interleave
from mmvim_ops import loading

_L1_FLOATS, _REPEATS = 4096, 500  # 16 KiB, half of them read and half written
_SMALL_FLOATS = 32768  # a thread's share of one torch.exp; stays in a second-level cache
_COPY_BYTES = {'cpu': 1 << 28, 'cuda': 1 << 30}
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
    call: Call
    count: int


def exp_loop(device: torch.device) -> ExpLoop:
    """The loop to time in the same rounds as the scans, as their ceiling.

    On a GPU a kernel that takes powers of numbers in registers. On a CPU the native library's own
    vectorised exponential over a buffer in the first cache, one thread, its rate multiplied by the
    number of threads; ``torch.exp`` where the library is not loaded.
    """
    if device.type == 'cuda':
        source = torch.rand(_CUDA_FLOATS, device=device)
        kernel = torch.cuda.jiterator._create_jit_fn(_EX2_KERNEL)
        return ExpLoop('ex2 loop', lambda: kernel(source), _CUDA_FLOATS * _EX2_REPEATS)
    threads = torch.get_num_threads()
    if loading.problem() is None:
        call = partial(loading.exp_many, -torch.rand(_L1_FLOATS), _REPEATS)
        return ExpLoop('native exp', call, _L1_FLOATS // 2 * _REPEATS * threads)
    values, out = -torch.rand(2, _SMALL_FLOATS * threads)
    return ExpLoop('torch.exp', lambda: torch.exp(values, out=out), values.numel())


@cache
def copy_bandwidth(device: torch.device, threads: int) -> float:
    """Bytes read and written per second by a copy far larger than any cache, with all threads.

    Measured once a number of ``threads``, which is torch's present one.
    """
    source = torch.ones(_COPY_BYTES[device.type] // 4, device=device)
    target = torch.zeros_like(source)
    args = Namespace(device=device, rounds=5, seconds=1.0)
    seconds: float = interleave({'copy': lambda: target.copy_(source)}, args)['copy']['seconds']
    return 2 * source.nbytes / seconds
