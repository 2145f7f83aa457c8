"""The report of benchmark_backbone.py: Markdown, JSON, plot."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarking.crossover import crossings, verdict
from benchmarking.report import (
    Row,
    facts,
    load_pyplot,
    mebibytes,
    percent,
    plain_log_ticks,
    significant,
    table,
    threads_text,
    write_json,
    write_text,
)

# Vim-Ti against DeiT-Ti with plain attention, batch inference on a GPU (arXiv 2401.09417, figure 1
# and section 4): resolution, speed of Vim over DeiT, memory of Vim over DeiT.
PAPER: list[dict[str, float | None]] = [
    dict(resolution=512, speed=1.0, memory=None),
    dict(resolution=1248, speed=2.8, memory=1 - 0.868),
]
NAMES = {
    'vim': 'Vim',
    'deit-sdpa': 'DeiT, SDPA',
    'deit-plain': 'DeiT, plain attention',
    'vim-with-cp': 'Vim, blocks recomputed',
}
_GROUP = ('execution', 'threads', 'mode', 'dtype', 'batch', 'size')
_PLOTTED_GROUPS = 6
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


def write(folder: Path, result: dict[str, Any]) -> None:
    """Write ``backbone.json``, crossovers included, and ``backbone.md``."""
    result['crossovers'] = crossovers(result['rows'])
    write_json(folder / 'backbone.json', result)
    write_text(folder / 'backbone.md', to_markdown(result))


def grouped(rows: Iterable[Row]) -> list[tuple[dict[str, Any], list[Row]]]:
    """Rows that differ in resolution and model alone, together."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in _GROUP), []).append(row)
    return [(dict(zip(_GROUP, key)), members) for key, members in groups.items()]


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
    for group, members in grouped(rows):
        for model in rivals(members):
            sizes, ratios = curve(members, model, 'vim_time_ratio')
            name = f'Vim-{group["size"]}'
            row: Row = dict(group, model=model, time=crossings(sizes, ratios))
            row['memory'] = crossings(*curve(members, model, 'vim_memory_ratio'))
            row['sentence'] = verdict(name, NAMES[model], sizes, ratios)
            found.append(row)
    return found


def to_markdown(result: dict[str, Any]) -> str:
    """The report as Markdown. A CPU's absolute times stay out: they are the machine's mood."""
    on_gpu = result['device'] == 'cuda'
    neck = _NECK[result['with_neck']]
    parts = [
        '# Vim against DeiT' + (', with the feature pyramid' if result['with_neck'] else ''),
        f'```bash\n{result["command"]}\n```',
        facts('Machine', result['machine']),
        facts('Versions', result['versions']),
        _READING.format(library=result['deit_from'], neck=neck),
        'The **paper** reports, for Vim-Ti against DeiT-Ti with plain attention, batch inference '
        'on a GPU: 2.8 times the speed and 86.8% less memory at 1248², equal speed at 512².',
    ]
    for group, members in grouped(result['rows']):
        parts.append(f'## {group_title(group, on_gpu)}')
        parts += [
            row['sentence']
            for row in result['crossovers']
            if all(row[key] == value for key, value in group.items())
        ]
        header = ['resolution', 'tokens', 'model', 'Vim ÷', 'spread']
        header += ['ms', 'images/s'] if on_gpu else []
        header += ['peak MiB', 'Vim ÷ peak']
        parts.append(table([_cells(row, on_gpu) for row in members], header))
    return '\n\n'.join(parts) + '\n'


def group_title(group: dict[str, Any], on_gpu: bool) -> str:
    """What the rows of a group have in common."""
    texts = [
        group['size'],
        group['mode'],
        f'B {group["batch"]}',
        group['dtype'],
        group['execution'],
    ]
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
    pyplot = load_pyplot()
    groups = grouped(result['rows'])[:_PLOTTED_GROUPS]
    if pyplot is None:
        return
    figure, axes = pyplot.subplots(
        len(groups), 2, figsize=(10, 3.4 * len(groups)), squeeze=False, layout='constrained'
    )
    for (group, members), (speed, memory) in zip(groups, axes):
        speed.set_title(f'Vim-{group_title(group, result["device"] == "cuda")}', fontsize='medium')
        for model in rivals(members):
            sizes, ratios = curve(members, model, 'vim_time_ratio')
            speed.plot(sizes, [1 / ratio for ratio in ratios], marker='o', label=NAMES[model])
            sizes, ratios = curve(members, model, 'vim_memory_ratio')
            memory.plot(sizes, [100 * r for r in ratios], marker='o', label=NAMES[model])
        if (group['mode'], group['size']) == ('inference', 'tiny'):
            draw_paper(speed, memory)
        speed.set_ylabel('speed of Vim ÷ speed of DeiT')
        speed.set_yscale('log')
        plain_log_ticks(speed.yaxis)
        memory.set_ylabel('memory of Vim, % of DeiT')
        memory.set_ylim(bottom=0)
        for axis, equal in ((speed, 1), (memory, 100)):
            axis.axhline(equal, color='grey', linewidth=0.8)
            axis.set_xscale('log')
            ticks = sorted({row['resolution'] for row in members})
            axis.set_xticks(ticks, [str(tick) for tick in ticks])
            axis.minorticks_off()
            axis.set_xlabel('side of the image, pixels')
            axis.grid(alpha=0.3)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=3, fontsize='small')
    figure.savefig(folder / 'backbone.png', dpi=120)
    pyplot.close(figure)


def draw_paper(speed: Any, memory: Any) -> None:
    """The paper's figures, as stars of their own."""
    label = 'paper: GPU, plain attention'
    for axis, key, factor in ((speed, 'speed', 1), (memory, 'memory', 100)):
        points = [(p['resolution'], p[key]) for p in PAPER if p[key] is not None]
        axis.plot(
            [size for size, _ in points],
            [factor * (value or 0) for _, value in points],
            linestyle='none',
            marker='*',
            markersize=12,
            color='black',
            label=label,
        )
