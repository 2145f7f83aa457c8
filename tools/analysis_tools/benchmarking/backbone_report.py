"""The report of benchmark_backbone.py: Markdown, JSON, plot."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarking import report
from benchmarking.report import Row, mebibytes, percent, significant, threads_text

# Vim-Ti against DeiT-Ti with plain attention, batch inference on a GPU (arXiv 2401.09417, figure 1
# and section 4), over the resolution: times its speed, and % of its memory.
PAPER_SPEED = ([512, 1248], [1.0, 2.8])
PAPER_MEMORY = ([1248], [100 - 86.8])
NAMES = {
    'vim': 'Vim',
    'deit-sdpa': 'DeiT, SDPA',
    'deit-plain': 'DeiT, plain attention',
    'vim-with-cp': 'Vim, blocks recomputed',
}
_GROUP = ('execution', 'threads', 'mode', 'dtype', 'batch', 'size')
# Ratios this close to 1 are told as equal: less than what a repetition may differ by.
_EQUAL = 0.02
_READING = """\
`Vim ÷` is the time of Vim over that of the model in the row, from the medians of interleaved
samples: below 1 Vim is faster. `spread` is the distance between the quartiles over the median.
`peak` is the most memory that torch held: weights, image, and in training gradients too;
`Vim ÷ peak` compares it. Training is a forward and a backward pass, without an optimizer.
DeiT comes from {library}; plain attention keeps the whole score matrix, SDPA is
`scaled_dot_product_attention`. {neck}"""
_NECK = {
    False: 'Both end in the class token, as for classification.',
    True: 'Both give four taps to the feature pyramid of UperNet, Vim without a class token.',
}


def curve(rows: Iterable[Row], model: str, key: str) -> tuple[list[int], list[float]]:
    """Resolutions and values of one model, where there are any."""
    points = [(row['resolution'], row[key]) for row in rows if row['model'] == model and key in row]
    points.sort()
    return [size for size, _ in points], [value for _, value in points]


def rivals(rows: Iterable[Row]) -> list[str]:
    """The models that Vim is compared with, in the order of the rows."""
    return [name for name in dict.fromkeys(row['model'] for row in rows) if name != 'vim']


def crossovers(rows: Iterable[Row]) -> list[Row]:
    """Per group and rival: where time and memory are equal, and a sentence on where Vim loses."""
    found = []
    for group, members in report.grouped(rows, _GROUP):
        for model in rivals(members):
            sizes, ratios = curve(members, model, 'vim_time_ratio')
            row: Row = dict(group, model=model, time=crossings(sizes, ratios))
            row['memory'] = crossings(*curve(members, model, 'vim_memory_ratio'))
            row['sentence'] = verdict(f'Vim-{group["size"]}', NAMES[model], sizes, ratios)
            found.append(row)
    return found


def crossings(sizes: Sequence[float], ratios: Sequence[float]) -> list[float]:
    """Every size at which a ratio is 1 or passes it.

    Interpolated linearly between the logarithms of both; sizes increase, and all is positive.
    """
    if len(sizes) != len(ratios):
        raise ValueError(f'{len(sizes)} sizes and {len(ratios)} ratios: give one ratio a size')
    if any(a >= b for a, b in pairwise(sizes)):
        raise ValueError(f'sizes must increase, got {list(sizes)}')
    points = [(math.log(size), math.log(ratio)) for size, ratio in zip(sizes, ratios)]
    found = []
    for index, (x, y) in enumerate(points):
        if y == 0:
            found.append(float(sizes[index]))
        elif index + 1 < len(points):
            next_x, next_y = points[index + 1]
            if y * next_y < 0:
                found.append(math.exp(x + (next_x - x) * y / (y - next_y)))
    return found


def verdict(ours: str, theirs: str, sizes: Sequence[int], ratios: Sequence[float]) -> str:
    """One sentence on where we lose and where we win; ``ratios`` are our time over theirs."""
    by_outcome: dict[str, list[str]] = {}
    for size, ratio in zip(sizes, ratios):
        outcome = 'equals' if abs(ratio - 1) < _EQUAL else 'loses to' if ratio > 1 else 'beats'
        by_outcome.setdefault(outcome, []).append(f'{size} ({ratio:.2f})')
    parts = [
        f'{outcome} {theirs} at {", ".join(by_outcome[outcome])}'
        for outcome in ('loses to', 'equals', 'beats')
        if outcome in by_outcome
    ]
    if not parts:
        return f'{ours} and {theirs}: nothing was measured at a common size.'
    meet = ' and '.join(f'{size:.0f}' for size in crossings(sizes, ratios))
    end = f'; the times meet at about {meet} pixels' if meet else '; the times do not meet there'
    return f'{ours} {", ".join(parts)}{end}.'


def to_markdown(result: dict[str, Any]) -> str:
    """The report as Markdown. A CPU's absolute times stay out: they are the machine's mood."""
    on_gpu = result['device'] == 'cuda'
    title = 'Vim against DeiT' + (', with the feature pyramid' if result['with_neck'] else '')
    parts = [
        *report.preamble(title, result),
        _READING.format(library=result['deit_from'], neck=_NECK[result['with_neck']]),
        'The **paper** reports, for Vim-Ti against DeiT-Ti with plain attention, batch inference '
        'on a GPU: 2.8 times the speed and 86.8% less memory at 1248², equal speed at 512².',
    ]
    header = ['resolution', 'tokens', 'model', 'Vim ÷', 'spread']
    header += ['ms', 'images/s'] if on_gpu else []
    header += ['peak MiB', 'Vim ÷ peak']
    for group, members in report.grouped(result['rows'], _GROUP):
        parts.append(f'## {group_title(group, on_gpu)}')
        parts += [
            row['sentence']
            for row in result['crossovers']
            if all(row[key] == value for key, value in group.items())
        ]
        parts.append(report.table([_cells(row, on_gpu) for row in members], header))
    return '\n\n'.join(parts) + '\n'


def group_title(group: dict[str, Any], on_gpu: bool) -> str:
    """Title of a group: the values its rows have in common."""
    batch = f'B {group["batch"]}'
    texts = [group['size'], group['mode'], batch, group['dtype'], group['execution']]
    return ', '.join(texts if on_gpu else [*texts, threads_text(group['threads'])])


def _cells(row: Row, on_gpu: bool) -> list[object]:
    cells: list[object] = [row['resolution'], row['tokens'], NAMES[row['model']]]
    if row['status'] != 'ok':
        return [*cells, row['status']]
    cells += [significant(row.get('vim_time_ratio')), percent(row['spread'])]
    if on_gpu:
        cells.append(significant(1e3 * row['median_seconds']))
        cells.append(significant(row['images_per_second']))
    return [*cells, mebibytes(row.get('peak_bytes')), significant(row.get('vim_memory_ratio'))]


def plot(folder: Path, result: dict[str, Any]) -> None:
    """Write ``backbone.png``: speed and memory of Vim over DeiT, beside the paper's figures."""

    def draw(group: dict[str, Any], members: list[Row], speed: Any, memory: Any) -> None:
        speed.set_title(f'Vim-{group_title(group, result["device"] == "cuda")}', fontsize='medium')
        for model in rivals(members):
            sizes, ratios = curve(members, model, 'vim_time_ratio')
            speed.plot(sizes, [1 / ratio for ratio in ratios], marker='o', label=NAMES[model])
            sizes, ratios = curve(members, model, 'vim_memory_ratio')
            memory.plot(sizes, [100 * ratio for ratio in ratios], marker='o', label=NAMES[model])
        if (group['mode'], group['size']) == ('inference', 'tiny'):
            for axis, (sizes, values) in ((speed, PAPER_SPEED), (memory, PAPER_MEMORY)):
                star = dict(marker='*', markersize=12, color='black', linestyle='none')
                axis.plot(sizes, values, label='paper: GPU, plain attention', **star)
        speed.set_ylabel('speed of Vim ÷ speed of DeiT')
        memory.set_ylabel('memory of Vim, % of DeiT')
        for axis, equal in ((speed, 1), (memory, 100)):
            axis.axhline(equal, color='grey', linewidth=0.8)

    groups = report.grouped(result['rows'], _GROUP)
    report.plot(folder / 'backbone.png', groups, 'resolution', 'side of the image, pixels', draw)
