"""Curves of training runs, read from the ``scalars.json`` that mmengine writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmvim.errors import UserError

LOG = 'scalars.json'
# What stands beside the values in a line, and what measures the machine.
_NO_VALUES = ('step', 'iter', 'epoch', 'time', 'data_time', 'memory')
_MOST_STEPS = 2**53  # a plot's numbers are whole up to here


@dataclass
class Curve:
    """One value over the iterations."""

    steps: list[int] = field(default_factory=list)  # iterations, ascending
    values: list[float] = field(default_factory=list)  # as many
    validation: bool = False  # whether a validation measured it


@dataclass
class Run:
    """The curves of one run."""

    curves: dict[str, Curve] = field(default_factory=dict)  # by key
    broken: int = 0  # lines that cannot be read, such as the last one of a run that was killed


def find_logs(place: str) -> list[Path]:
    """The logs of a run: the file itself, or all in a work dir, the oldest first.

    Raises:
        UserError: If there is none.
    """
    path = Path(place).expanduser()
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f'{place} does not exist: give a work dir or a {LOG} in one')
    # mmengine names the folders by the time of their start.
    places = ('', 'vis_data/', '*/vis_data/')
    logs = sorted(log for place in places for log in path.glob(place + LOG))
    if not logs:
        raise UserError(
            f'{path} holds no log (looked for */vis_data/{LOG}): give the work dir of a training '
            'whose visualizer has the LocalVisBackend'
        )
    return logs


def read_run(logs: Sequence[Path]) -> Run:
    """Read the logs of one run, the later ones resuming the earlier.

    From the iteration on where a later log begins, its values take the place of earlier ones. A
    validation that is logged by epoch stands at the last logged iteration before it. Logs of tests
    in the same work dir are passed over.

    Args:
        logs (Sequence[Path]): The oldest first.

    Raises:
        UserError: If a log holds no values.
    """
    parts = [_read(log) for log in logs]
    run = Run(broken=sum(part.broken for part in parts))
    trained = [part for part in parts if not all(c.validation for c in part.curves.values())]
    for part in trained or parts:
        begins = [curve.steps[0] for curve in part.curves.values() if not curve.validation]
        start = min(begins, default=0)
        for curve in run.curves.values():
            kept = sum(step < start for step in curve.steps)
            del curve.steps[kept:], curve.values[kept:]
        for key, curve in part.curves.items():
            whole = run.curves.setdefault(key, Curve(validation=curve.validation))
            whole.steps += curve.steps
            whole.values += curve.values
    run.curves = {key: curve for key, curve in run.curves.items() if curve.steps}
    if not run.curves:
        raise UserError(f'{logs[-1]} holds no values: the run ended before the first was logged')
    return run


def _read(log: Path) -> Run:
    run, iteration = Run(), 0
    for line in log.read_text(encoding='utf-8', errors='replace').splitlines():
        if not line.strip():
            continue
        try:
            entry = json.loads(line, parse_int=float)
            readable = 0 <= entry['step'] < _MOST_STEPS
        except (ValueError, TypeError, KeyError, RecursionError):
            readable = False
        if not readable:
            run.broken += 1
            continue
        # A validation logs the iteration or, by mmengine's default, the epoch, which is smaller.
        validation = 'iter' not in entry
        step = max(int(entry['step']), iteration)
        iteration = iteration if validation else step
        for key, value in entry.items():
            if key not in _NO_VALUES and isinstance(value, float):
                curve = run.curves.setdefault(key, Curve(validation=validation))
                curve.steps.append(step)
                curve.values.append(value)
    return run


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """Exponential moving average, its start corrected for the missing past (Adam, Sec. 3).

    Args:
        values (Sequence[float]): In order; those that are not finite stay out of the average.
        weight (float): Of the past, in [0, 1); 0 changes nothing.

    Returns:
        list[float]: As many values.
    """
    average, mass, found = 0.0, 0.0, []
    for value in values:
        if abs(value) < float('inf'):
            average = weight * average + (1 - weight) * value
            mass = weight * mass + (1 - weight)
        found.append(average / mass if mass else value)
    return found
