"""Reports of both benchmarks: Markdown, JSON, plots."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
# A column's title to the key of its values and the text of one.
Columns = Mapping[str, tuple[str, Callable[[Any], str]]]


def significant(value: float) -> str:
    """A number to three significant digits or as an integer."""
    return f'{value:.0f}' if abs(value) >= 99.95 else f'{value:#.3g}'


def mebibytes(value: float) -> str:
    """Bytes in MiB."""
    return significant(value / 2**20)


def facts(title: str, values: Mapping[str, object]) -> str:
    """Name-value pairs as one Markdown paragraph."""
    return f'**{title}**: ' + '; '.join(f'{name} {value}' for name, value in values.items()) + '.'


def table(rows: Iterable[Row], columns: Columns) -> str:
    """A Markdown table; what a row lacks becomes a dash.

    The status of a row that failed takes the place of its first dash.
    """

    def line(cells: Iterable[str]) -> str:
        return '| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |'

    lines = [line(columns), '|' + '---|' * len(columns)]
    for row in rows:
        cells = ['–' if row.get(key) is None else text(row[key]) for key, text in columns.values()]
        lines.append(
            line(cells if row['status'] == 'ok' else [*cells[: cells.index('–')], row['status']])
        )
    return '\n'.join(lines)


def write(
    folder: Path,
    name: str,
    result: Mapping[str, Any],
    texts: Sequence[str],
    group: Sequence[str],
    columns: Columns,
    x: str,
    panels: Mapping[str, str],
    line: str,
    stars: Mapping[str, Mapping[int, float]],
) -> None:
    """Write NAME.json, non-finite numbers refused, NAME.md and, with matplotlib, NAME.png.

    Args:
        folder (Path): Where to.
        name (str): Of the files.
        result (Mapping): The 'command', the 'machine', the 'versions' and the 'rows'.
        texts (Sequence[str]): What the report says before the tables, its title first.
        group (Sequence[str]): Keys of the values that the rows of a table have in common.
        columns (Columns): Of every table.
        x (str): Key of the plots' horizontal axis, logarithmic with a tick a value.
        panels (Mapping[str, str]): Label of a plot's vertical axis, logarithmic too, to its key.
        line (str): Name of the line that a row's point lies on, a template of its values.
        stars (Mapping[str, Mapping[int, float]]): The paper's points, by a panel's key.
    """
    content = json.dumps(result, indent=1, allow_nan=False) + '\n'
    (folder / f'{name}.json').write_text(content, encoding='utf-8')
    groups: dict[str, list[Row]] = {}
    for row in result['rows']:
        values = (f'B {row[key]}' if key == 'batch' else row[key] for key in group)
        groups.setdefault(', '.join(values), []).append(row)
    about = [f'```bash\n{result["command"]}\n```']
    about += [facts(key.capitalize(), result[key]) for key in ('machine', 'versions')]
    tables = [f'## {title}\n\n{table(rows, columns)}' for title, rows in groups.items()]
    text = '\n\n'.join([texts[0], *about, *texts[1:], *tables]) + '\n'
    (folder / f'{name}.md').write_text(text, encoding='utf-8')
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator
    except ImportError as error:
        print(f'no plot: {error}', file=sys.stderr)
        return
    figure = Figure(figsize=(10, 3.3 * len(groups)), layout='constrained')
    axes = figure.subplots(len(groups), len(panels), squeeze=False)
    for (title, rows), pair in zip(groups.items(), axes):
        ticks = sorted({row[x] for row in rows})
        for axis, (height, key) in zip(pair, panels.items()):
            for label in dict.fromkeys(line.format_map(row) for row in rows):
                mine = [row for row in rows if line.format_map(row) == label]
                points = [(row[x], row[key]) for row in mine if row.get(key) is not None]
                if points:
                    axis.plot(*zip(*points), marker='o', markersize=4, label=label)
            if key in stars:
                axis.plot(*zip(*stars[key].items()), 'k*', markersize=12, label='paper')
            axis.set(title=title, xlabel=x, ylabel=height, xscale='log', yscale='log')
            axis.set_xticks(ticks, [str(tick) for tick in ticks])
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter('{x:g}')
            axis.minorticks_off()
            axis.grid(alpha=0.3)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=3, fontsize='small')
    figure.savefig(folder / f'{name}.png', dpi=120)
