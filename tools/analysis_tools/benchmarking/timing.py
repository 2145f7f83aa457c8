"""Interleaved timing: one sample of each side in turn, medians and quartiles."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count

import torch

Call = Callable[[], object]
OOM = 'OOM'
_GRAPH_WARM_UPS = 3
# How torch says that memory is short, on a GPU (a type of its own) and on a CPU (by its text).
_OUT_OF_MEMORY_TEXTS = ("can't allocate memory", 'not enough memory', 'out of memory')


@dataclass(frozen=True)
class Timing:
    """Seconds that one call took, one sample a round, averaged over the ``loops`` calls of each."""

    samples: tuple[float, ...]
    loops: int

    @property
    def median(self) -> float:
        """The median sample, in seconds."""
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """Distance between the quartiles over the median; 0 for fewer than two samples."""
        if len(self.samples) < 2:
            return 0.0
        first, _, third = statistics.quantiles(self.samples, n=4, method='inclusive')
        return (third - first) / self.median


# Or why a call could not be timed, for the table.
Timings = dict[str, Timing | str]


@dataclass(frozen=True)
class Effort:
    """Effort of a measurement.

    Attributes:
        rounds (int): Rounds taken at least.
        seconds (float): Time spent on one set of calls at least, unless ``max_rounds`` are reached.
        sample_seconds (float): Short calls are repeated until a sample takes about this long.
        max_rounds (int): Rounds taken at most.
    """

    rounds: int = 5
    seconds: float = 2.0
    sample_seconds: float = 0.01
    max_rounds: int = 100

    def __post_init__(self) -> None:
        if not 1 <= self.rounds <= self.max_rounds or self.seconds < 0:
            raise ValueError(
                f'rounds={self.rounds} must be within 1 and {self.max_rounds}, and '
                f'seconds={self.seconds} not negative'
            )


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or one that it came upon, says that there is no memory left."""
    while error is not None:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            return True
        text = str(error).lower()
        if isinstance(error, RuntimeError) and any(part in text for part in _OUT_OF_MEMORY_TEXTS):
            return True
        error = error.__context__  # a capture that ran out of memory ends in an error of its own
    return False


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
    """Seconds per call over ``loops`` calls; on a GPU between two events of its stream."""
    if device.type == 'cuda':
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        for _ in range(loops):
            call()
        end.record()
        torch.cuda.synchronize(device)
        return 1e-3 * float(start.elapsed_time(end)) / loops
    begin = time.perf_counter()
    for _ in range(loops):
        call()
    return (time.perf_counter() - begin) / loops


def interleave(
    calls: Mapping[str, Call], device: torch.device, effort: Effort, warm: bool = False
) -> Timings:
    """Time several calls in turn, so that all of them meet the same state of the machine.

    Every call is warmed up once unless it is ``warm``, then once more to find how many fit into a
    sample. Each round takes one sample of every call, and starts one call later than the round
    before it: nobody always runs after the same neighbour. A call that runs out of memory is left
    out of the rounds and comes back as :data:`OOM`.
    """
    results: Timings = dict.fromkeys(calls, OOM)
    loops: dict[str, int] = {}
    for name, call in calls.items():
        try:
            if not warm:
                sample(call, 1, device)
            once = max(sample(call, 1, device), 1e-9)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            release(device)
        else:
            loops[name] = max(1, math.ceil(effort.sample_seconds / once))
    names = list(loops)
    samples: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        begin = time.perf_counter()
        for number in count():
            enough = number >= effort.rounds and time.perf_counter() - begin >= effort.seconds
            if not names or enough or number >= effort.max_rounds:
                break
            shift = number % len(names)
            for name in names[shift:] + names[:shift]:
                samples[name].append(sample(calls[name], loops[name], device))
    finally:
        gc.enable()
    return results | {name: Timing(tuple(samples[name]), loops[name]) for name in names}


def release(device: torch.device) -> None:
    """Give back what failed calls left behind, so that the next case starts clean."""
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.empty_cache()
