"""Parts of both reports: Markdown, JSON, plots."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Groups = list[tuple[dict[str, Any], list[Row]]]
_PLOTTED_GROUPS = 6


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


def preamble(title: str, result: Mapping[str, Any]) -> list[str]:
    """The paragraphs that every report begins with."""
    command = f'```bash\n{result["command"]}\n```'
    about = [facts(name, result[name.lower()]) for name in ('Machine', 'Versions')]
    return [f'# {title}', command, *about]


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


def grouped(rows: Iterable[Row], keys: Sequence[str]) -> Groups:
    """Rows that have all of these values in common, together."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return [(dict(zip(keys, values)), members) for values, members in groups.items()]


def write(folder: Path, name: str, result: Mapping[str, Any], markdown: str) -> None:
    """Write the result as JSON, non-finite numbers refused, and as Markdown."""
    content = json.dumps(result, indent=1, allow_nan=False) + '\n'
    (folder / f'{name}.json').write_text(content, encoding='utf-8')
    (folder / f'{name}.md').write_text(markdown, encoding='utf-8')


def plot(
    file: Path,
    groups: Groups,
    x: str,
    label: str,
    draw: Callable[[dict[str, Any], list[Row], Any, Any], None],
) -> None:
    """Two panels a group, for the first groups; one line on stderr where matplotlib is missing.

    ``x`` is the key of the horizontal axis, logarithmic with a tick a value. ``draw`` draws a group
    into its left panel, which is logarithmic too, and its right one, which begins at zero.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator
    except ImportError:
        print('no plot: matplotlib is not installed', file=sys.stderr)
        return
    groups = groups[:_PLOTTED_GROUPS]
    if not groups:
        return
    figure = Figure(figsize=(10, 3.3 * len(groups)), layout='constrained')
    axes = figure.subplots(len(groups), 2, squeeze=False)
    for (group, members), (left, right) in zip(groups, axes):
        draw(group, members, left, right)
        left.set_yscale('log')
        left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        left.yaxis.set_major_formatter('{x:g}')
        right.set_ylim(bottom=0)
        ticks = sorted({row[x] for row in members})
        for axis in (left, right):
            axis.set_xscale('log')
            axis.set_xticks(ticks, [str(tick) for tick in ticks])
            axis.minorticks_off()
            axis.set_xlabel(label)
            axis.grid(alpha=0.3)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=3, fontsize='small')
    figure.savefig(file, dpi=120)
