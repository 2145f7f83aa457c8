"""Reports: Markdown tables, JSON, progress with the time left."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
_SECONDS_BETWEEN_LINES = 10.0


def table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """A Markdown table; None becomes a dash."""

    def line(cells: Sequence[object]) -> str:
        texts = ('–' if cell is None else str(cell) for cell in cells)
        return '| ' + ' | '.join(text.replace('|', '\\|') for text in texts) + ' |'

    rule = '|' + '---|' * len(header)
    return '\n'.join([line(header), rule, *(line(row) for row in rows)])


def facts(title: str, values: Mapping[str, str]) -> str:
    """Name-value pairs as one Markdown paragraph."""
    return f'**{title}**: ' + '; '.join(f'{name} {value}' for name, value in values.items()) + '.'


def significant(value: float | None, digits: int = 3) -> str | None:
    """A number to so many significant digits, never in exponential notation."""
    if value is None:
        return None
    rounded = float(f'{value:.{digits}g}')
    if not rounded:
        return '0'
    decimals = digits - 1 - math.floor(math.log10(abs(rounded)))
    return f'{rounded:.{max(0, decimals)}f}'


def percent(value: float | None) -> str | None:
    """A share as whole percent."""
    return None if value is None else f'{100 * value:.0f}%'


def mebibytes(value: float | None) -> str | None:
    """Bytes in MiB."""
    return None if value is None else significant(value / 2**20)


def threads_text(threads: int) -> str:
    """'1 thread', '2 threads'."""
    return f'{threads} thread{"" if threads == 1 else "s"}'


def write_text(path: Path, text: str) -> None:
    """Write a file in one step: a run that is stopped leaves the old one or the new one."""
    partial = path.with_name(path.name + '.partial')
    partial.write_text(text, encoding='utf-8')
    os.replace(partial, path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a result as JSON, non-finite numbers refused."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + '\n')


def load_pyplot() -> Any | None:
    """Matplotlib's pyplot drawing to files, or None (and one line) where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        print('no plot: matplotlib is not installed', file=sys.stderr)
        return None
    matplotlib.use('Agg')
    from matplotlib import pyplot

    return pyplot


def plain_log_ticks(axis: Any) -> None:
    """Label a logarithmic axis of matplotlib with plain numbers at 1, 2, 5, 10 and so on."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter('{x:g}')
    axis.set_minor_formatter(NullFormatter())


def seconds_text(seconds: float) -> str:
    """Seconds for people: '40 s', '3 min', '1 h 20 min'."""
    if seconds < 90:
        return f'{seconds:.0f} s'
    minutes = round(seconds / 60)
    return f'{minutes} min' if minutes < 60 else f'{minutes // 60} h {minutes % 60} min'


class Progress:
    """Says on stderr how far a run is and about how long the rest takes.

    A bar where rich is installed and stderr is a terminal, else a line every ten seconds.

    Args:
        costs: How long each step takes, in any unit: the time left is what the steps done so far
            took, scaled by their costs.
        clock: Where the time comes from; for tests.
    """

    def __init__(self, costs: Sequence[float], clock: Callable[[], float] = time.monotonic) -> None:
        self._costs, self._clock = list(costs), clock
        self._begin = self._spoke = clock()
        self._done = 0
        self._bar = self._make_bar()
        if self._bar is not None:
            self._task = self._bar.add_task('', total=sum(self._costs))
            self._bar.start()

    @staticmethod
    def _make_bar() -> Any | None:
        if not sys.stderr.isatty():
            return None
        try:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar
        except ImportError:
            return None
        return Bar(TextColumn('{task.description}'), BarColumn(), console=Console(stderr=True))

    def left(self) -> float | None:
        """Seconds that the rest will take about; None before the first step is done."""
        done = sum(self._costs[: self._done])
        if not done:
            return None
        return (self._clock() - self._begin) * sum(self._costs[self._done :]) / done

    def step(self, what: str) -> None:
        """The next step begins."""
        left = self.left()
        rest = '' if left is None else f', about {seconds_text(left)} left'
        text = f'[{self._done + 1}/{len(self._costs)}] {what}{rest}'
        now = self._clock()
        if self._bar is not None:
            done = sum(self._costs[: self._done])
            self._bar.update(self._task, description=text, completed=done)
        elif not self._done or now - self._spoke >= _SECONDS_BETWEEN_LINES:
            print(text, file=sys.stderr, flush=True)
            self._spoke = now
        self._done += 1

    def close(self) -> None:
        """The last step is over."""
        if self._bar is not None:
            self._bar.update(self._task, completed=sum(self._costs))
            self._bar.stop()
