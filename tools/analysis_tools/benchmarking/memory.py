"""Memory of a call: torch's allocations, saved tensors, the process as a whole."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

Call = Callable[[], object]
# For a process whose resident memory is to follow its allocations: blocks above 64 KiB come from
# the system and go back to it at once (glibc).
FAITHFUL_MALLOC = {
    'MALLOC_MMAP_THRESHOLD_': '65536',
    'MALLOC_TRIM_THRESHOLD_': '65536',
    'MALLOC_ARENA_MAX': '1',
}
os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # the profiler writes lines of its own to stderr


def peak_bytes(call: Call, device: torch.device) -> int:
    """The most that torch held during a call, above what it held before it, in bytes.

    Args:
        call (Call): Run once. Its result counts: it is alive when the call ends.
        device (torch.device): 'cuda' reads the caching allocator's own mark; on a CPU every
            allocation and release that torch's allocator reports is added up. Memory that a kernel
            takes by other means (scratch of a native library) shows in :func:`resident_peak_bytes`
            alone.
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
    assert profiled.profiler is not None and profiled.profiler.kineto_results is not None
    events = profiled.profiler.kineto_results.events()
    changes = [event for event in events if event.name() == '[memory]']
    held = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        if change.device_type() == torch.profiler.DeviceType.CPU:
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


def resident_peak_bytes(call: Call) -> int | None:
    """The most resident memory of this process during a call, above what it had before, in bytes.

    Meant for a fresh process started with :data:`FAITHFUL_MALLOC`. None where the system does not
    say; Linux does.
    """
    try:
        Path('/proc/self/clear_refs').write_text('5')  # sets the high-water mark to the present
        before = _kilobytes('/proc/self/status', 'VmRSS')
        call()
        after = _kilobytes('/proc/self/status', 'VmHWM')
    except OSError:
        return None
    return None if before is None or after is None else max(0, 1024 * (after - before))


def free_bytes() -> int | None:
    """Memory of the CPU that can still be taken, in bytes; None where the system does not say."""
    limits = []
    try:
        available = _kilobytes('/proc/meminfo', 'MemAvailable')
        limits += [] if available is None else [1024 * available]
        group = Path('/sys/fs/cgroup')  # a container's own limit; 'max' is none
        limit, used = ((group / f'memory.{name}').read_text() for name in ('max', 'current'))
        limits.append(int(limit) - int(used))
    except (OSError, ValueError):
        pass
    return min(limits, default=None)


def _kilobytes(file: str, key: str) -> int | None:
    found = re.search(rf'^{key}:\s+(\d+) kB', Path(file).read_text(), re.MULTILINE)
    return None if found is None else int(found[1])
