"""Time and memory of calls: interleaved samples, peaks, what autograd saves."""

from __future__ import annotations

import gc
import math
import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.profiler import DeviceType, ProfilerActivity, profile

Call = Callable[[], object]
# Short calls are repeated until a sample takes about so many seconds.
_SAMPLE_SECONDS, _MAX_ROUNDS, _GRAPH_WARM_UPS = 0.01, 100, 3
os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # the profiler writes lines of its own to stderr


@contextmanager
def contained(failed: dict[str, dict[str, Any]], name: str) -> Iterator[None]:
    """Note under ``name`` why a contender cannot run, and go on.

    ``status`` becomes 'OOM' on a GPU, else the first line of what torch, a kernel or an import
    says.
    """
    try:
        yield
    except (RuntimeError, MemoryError, ImportError) as error:
        status = 'OOM' if isinstance(error, torch.OutOfMemoryError) else str(error).splitlines()[0]
        failed[name] = dict(status=status)
        print(f'{name}: {status}', file=sys.stderr)
    if name in failed:  # the error is gone here, and with it the frames that held tensors
        release()


def capture(call: Call) -> Call:
    """A call as one CUDA graph, which is replayed instead; its results are not returned.

    It is warmed up on a stream of its own, as torch's rules for graphs ask.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_GRAPH_WARM_UPS):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def sample(call: Call, loops: int, device: torch.device) -> float:
    """Seconds per call over ``loops`` calls; on a GPU until all of their kernels have ended."""
    synchronize = torch.cuda.synchronize if device.type == 'cuda' else lambda: None
    synchronize()
    begin = time.perf_counter()
    for _ in range(loops):
        call()
    synchronize()
    return (time.perf_counter() - begin) / loops


def interleave(calls: Mapping[str, Call], args: Namespace) -> dict[str, dict[str, Any]]:
    """Time several calls in turn, so that all of them meet the same state of the machine.

    Every call is warmed up once, then run once more to find how many fit into a sample. Each round
    takes one sample of every call, and starts one call later than the round before it: nobody
    always runs after the same neighbour.

    Args:
        calls (Mapping[str, Call]): What to time.
        args (Namespace): With ``device``, and the ``rounds`` and ``seconds`` to take at least.

    Returns:
        dict[str, dict]: By name ``status`` 'ok', the median ``seconds`` of a call, ``spread``, the
        distance between the quartiles over the median, and ``rounds``; or the ``status`` of
        :func:`contained`.
    """
    rows: dict[str, dict[str, Any]] = {}
    loops: dict[str, int] = {}
    for name, call in calls.items():
        with contained(rows, name):
            sample(call, 1, args.device)
            once = max(sample(call, 1, args.device), 1e-9)
            loops[name] = max(1, math.ceil(_SAMPLE_SECONDS / once))
    names = list(loops)
    samples: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        begin = time.perf_counter()
        for number in range(max(args.rounds, _MAX_ROUNDS) if names else 0):
            if number >= args.rounds and time.perf_counter() - begin >= args.seconds:
                break
            shift = number % len(names)
            for name in names[shift:] + names[:shift]:
                samples[name].append(sample(calls[name], loops[name], args.device))
    finally:
        gc.enable()
    for name, taken in samples.items():
        first, median, third = (
            torch.tensor(taken).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
        )
        spread = (third - first) / median
        rows[name] = dict(status='ok', seconds=median, spread=spread, rounds=len(taken))
    return rows


def peak_bytes(call: Call, device: torch.device) -> int:
    """The most that torch held during a call, above what it held before it, in bytes.

    Args:
        call (Call): Run once. Its result counts: it is alive when the call ends.
        device (torch.device): 'cuda' reads the caching allocator's own mark; on a CPU every
            allocation and release that torch's allocator reports is added up. Memory that a kernel
            takes by other means (scratch of a native library) does not show.
    """
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = call()
        torch.cuda.synchronize(device)
        del result
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    events = profiled.profiler.kineto_results.events()
    changes = [event for event in events if event.name() == '[memory]']
    held = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        if change.device_type() == DeviceType.CPU:
            held += change.nbytes()
            peak = max(peak, held)
    return peak


def saved_bytes(call: Call, parameters: Iterable[Tensor] = ()) -> int:
    """Bytes that autograd keeps alive between a forward pass and its backward pass.

    Each storage counts once and whole, as that is what stays in memory, also where only a view of
    it was saved.

    Args:
        call (Call): The forward pass, with gradients; returns its output, which keeps the graph
            alive.
        parameters (Iterable[Tensor]): Tensors that exist anyway and do not count.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in parameters}
    # The tensors are kept until the end: an address that was freed could be given out again.
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in known:
            saved[address] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = call()
    total = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    del output
    return total


def release() -> None:
    """Give back what calls left behind, so that the next ones start clean."""
    gc.collect()
    torch.cuda.empty_cache()  # nothing where no GPU was used
