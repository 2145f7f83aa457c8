"""Ceilings of the machine: copies and exponentials, measured in the same run."""

from __future__ import annotations

from argparse import Namespace
from functools import cache, partial

import torch

from benchmarking.measuring import Call, interleave
from mmvim_ops import loading

_L1_FLOATS, _REPEATS = 4096, 500  # 16 KiB, half of them read and half written
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


def exp_loop(device: torch.device) -> tuple[Call, int]:
    """A loop of nothing but exponentials, the scans' ceiling, and its count in all threads.

    On a GPU a kernel that takes powers of numbers in registers. On a CPU the native library's own
    vectorised exponential over a buffer in the first cache, one thread, its rate multiplied by the
    number of threads; the call raises a RuntimeError where the library is not loaded.
    """
    if device.type == 'cuda':
        source = torch.rand(_CUDA_FLOATS, device=device)
        kernel = torch.cuda.jiterator._create_jit_fn(_EX2_KERNEL)
        return lambda: kernel(source), _CUDA_FLOATS * _EX2_REPEATS
    call = partial(loading.exp_many, -torch.rand(_L1_FLOATS), _REPEATS)
    return call, _L1_FLOATS // 2 * _REPEATS * torch.get_num_threads()


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
