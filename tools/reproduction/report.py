"""Results of a table: JSON, Markdown, and what a folder of configs shows of them."""

import json
import os
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mmvim.atomic_files import write_atomically
from mmvim.cli.metafile import PAPER, read_metafile, write_metafile
from mmvim.cli.result_table import paper_metrics
from mmvim.errors import UserError
from mmvim.version import __version__
from reproduction.tables import ROOT, TABLES

BEGIN, END = '<!-- results -->', '<!-- end of results -->'
# Columns, in this order, where a run has them; JSON and metafiles have all.
_SHOWN = ('mIoU', 'aAcc', 'box AP', 'box AP50', 'mask AP', 'mask AP50', 'Top 1 Accuracy')
_TASKS = {
    'box AP': 'Object Detection',
    'mask AP': 'Instance Segmentation',
    'mIoU': 'Semantic Segmentation',
    'mAcc': 'Semantic Segmentation',
    'aAcc': 'Semantic Segmentation',
    'Top': 'Image Classification',
}


def machine() -> dict[str, Any]:
    """What measured."""
    names = re.findall(r'model name\s*: (.+)', _text(Path('/proc/cpuinfo')))
    found = dict(cpu=(names or [platform.machine()])[0], cores=os.cpu_count())
    if torch.cuda.is_available():
        found['gpu'] = torch.cuda.get_device_name()
    return dict(found, threads=torch.get_num_threads(), torch=torch.__version__, mmvim=__version__)


def write(results: Mapping[str, Any], reasons: Mapping[str, str], out: Path) -> None:
    """``results.json``, and ``results.md`` with what was not run."""
    write_atomically(out / 'results.json', as_json(results).encode())
    text = [f'# {results["table"]}', to_markdown(results)]
    if reasons:
        text.append('Not run:\n\n' + '\n'.join(f'* `{n}`: {why}' for n, why in reasons.items()))
    write_atomically(out / 'results.md', ('\n\n'.join(text) + '\n').encode())


def as_json(results: Mapping[str, Any]) -> str:
    """The text of ``results.json``."""
    return json.dumps(results, indent=1, ensure_ascii=False) + '\n'


def means(row: Mapping[str, Any]) -> dict[str, float]:
    """Each metric's mean over the seeds."""
    runs = [run['metrics'] for run in row['runs']]
    return {name: statistics.mean(run[name] for run in runs) for name in runs[0]}


def to_markdown(results: Mapping[str, Any]) -> str:
    """A row for each config: measured, published and the difference; what it took."""
    rows = [row for row in results['rows'] if row['runs']]
    papers = [paper_metrics(ROOT / row['config']) for row in rows]
    known = {name: None for row in rows for name in row['runs'][0]['metrics']}
    names = [name for name in _SHOWN if name in known] or list(known)
    compared = [name for name in names if any(name in paper for paper in papers)]
    spent = [key for key in ('cpu_minutes', 'gpu_minutes') if _any(rows, key)]
    head = ['config', 'parameters', 'iterations', 'seeds']
    for name in names:
        head += [name, *(['paper', 'difference'] if name in compared else [])]
    head += [key.replace('_minutes', '').upper() + ' min' for key in spent] + ['min']
    lines = [head, ['---', *['---:'] * (len(head) - 1)]]
    for row, paper in zip(rows, papers):
        runs, mean = row['runs'], means(row)
        seeds = ', '.join(str(run['seed']) for run in runs)
        cells = [f'`{row["name"]}`', f'{row["parameters"] / 1e6:.2f} M', str(runs[0]['iterations'])]
        cells.append(seeds)
        for name in names:
            cells.append(_spread([run['metrics'][name] for run in runs if name in run['metrics']]))
            if name in compared:
                given = name in paper and name in mean
                cells.append(f'{paper[name]:.1f}' if name in paper else '–')
                cells.append(f'{mean[name] - paper[name]:+.1f}' if given else '–')
        for key in (*spent, 'minutes'):
            values = [run[key] for run in runs if run[key] is not None]
            cells.append(f'{statistics.mean(values):.1f}' if values else '–')
        lines.append(cells)
    total = sum(run['minutes'] for row in rows for run in row['runs'])
    what = ', '.join(f'{key} {value}' for key, value in results['machine'].items())
    foot = (
        f'`{results["command"]}`: {what}. Figures are those of the last checkpoint, in per cent; '
        'with several seeds mean ± standard deviation; minutes are those of one training, '
        f'interruptions apart, {total:.0f} in all.'
    )
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines) + f'\n\n{foot}'


def _any(rows: Sequence[Mapping[str, Any]], key: str) -> bool:
    return any(run[key] is not None for row in rows for run in row['runs'])


def _spread(values: Sequence[float]) -> str:
    if not values:
        return '–'
    spread = f' ± {statistics.stdev(values):.1f}' if len(values) > 1 else ''
    return f'{statistics.mean(values):.1f}{spread}'


def shown_in(folder: Path, results: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """What the README and the metafile of a folder of configs have to say with these results.

    Args:
        folder (Path): Of the configs of all rows.
        results (Mapping): Content of its ``results.json``.

    Returns:
        tuple[str, dict]: Text of the README and content of the metafile.

    Raises:
        UserError: If they have no place for the results.
    """
    before, begin, rest = _text(folder / 'README.md').partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise UserError(f'{folder}/README.md needs the lines {BEGIN} and {END} around the table')
    content = read_metafile(folder / 'metafile.yml')
    rows = {row['name']: row for row in results['rows'] if row['runs']}
    missing = rows.keys() - {model['Name'] for model in content['Models']}
    if missing:
        raise UserError(
            f'{folder}/metafile.yml lacks {", ".join(sorted(missing))}: '
            '`python tools/analysis_tools/update_metafiles.py` adds entries'
        )
    for model in content['Models']:
        entries = _entries(rows.get(model['Name']), TABLES[results['table']].dataset)
        entries += [
            entry
            for entry in model.pop('Results', [])
            if all(name.endswith(PAPER) for name in entry['Metrics'])
        ]
        model.update({'Results': entries} if entries else {})
    return f'{before}{begin}\n{to_markdown(results)}\n{end}{after}', content


def copy(folder: Path, results: Mapping[str, Any]) -> None:
    """Show results in the README and the metafile of a folder of configs, and keep them there."""
    readme, metafile = shown_in(folder, results)
    write_metafile(folder / 'metafile.yml', metafile)
    write_atomically(folder / 'README.md', readme.encode())
    write_atomically(folder / 'results.json', as_json(results).encode())


def disagreements(folder: Path) -> list[str]:
    """Names of the files in a folder that do not show what its ``results.json`` says."""
    readme, metafile = shown_in(folder, json.loads(_text(folder / 'results.json')))
    agree = {
        'README.md': _text(folder / 'README.md') == readme,
        'metafile.yml': read_metafile(folder / 'metafile.yml') == metafile,
    }
    return [name for name in agree if not agree[name]]


def _entries(row: Mapping[str, Any] | None, dataset: str) -> list[dict[str, Any]]:
    """The metafile's results of a row, by task."""
    tasks: dict[str, dict[str, float]] = {}
    for name, value in (means(row) if row else {}).items():
        task = next((task for start, task in _TASKS.items() if name.startswith(start)), None)
        if task:
            tasks.setdefault(task, {})[name] = round(value, 2)
    return [
        {'Task': task, 'Dataset': dataset, 'Metrics': metrics} for task, metrics in tasks.items()
    ]


def _text(file: Path) -> str:
    return file.read_text(encoding='utf-8') if file.is_file() else ''
