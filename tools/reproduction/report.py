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
_SHOWN = (
    *('mIoU', 'aAcc', 'box AP', 'box AP50', 'mask AP', 'mask AP50', 'mask AP, 1,000 detections'),
    'Top 1 Accuracy',
)
_TASKS = {
    'box': 'Object Detection',
    'mask': 'Instance Segmentation',
    'Top': 'Image Classification',
    '': 'Semantic Segmentation',
}


def machine() -> dict[str, Any]:
    """What measured."""
    names = re.findall(r'model name\s*: (.+)', _text(Path('/proc/cpuinfo')))
    found = dict(cpu=(names or [platform.machine()])[0], cores=os.cpu_count())
    if torch.cuda.is_available():
        found['gpu'] = torch.cuda.get_device_name()
    return found | dict(threads=torch.get_num_threads(), torch=torch.__version__, mmvim=__version__)


def write(results: Mapping[str, Any], reasons: Mapping[str, str], out: Path) -> None:
    """``results.json``, and ``results.md`` with what was not run."""
    write_atomically(out / 'results.json', _as_json(results))
    text = f'# {results["table"]}\n\n{to_markdown(results)}\n'
    text += ''.join(f'\n* `{name}` was not run: {why}' for name, why in reasons.items())
    write_atomically(out / 'results.md', f'{text}\n'.encode())


def read(folder: Path) -> dict[str, Any]:
    """Content of the ``results.json`` in a folder."""
    return dict(json.loads(_text(folder / 'results.json')))


def _as_json(results: Mapping[str, Any]) -> bytes:
    return (json.dumps(results, indent=1, ensure_ascii=False) + '\n').encode()


def _text(file: Path) -> str:
    return file.read_text(encoding='utf-8') if file.is_file() else ''


def to_markdown(results: Mapping[str, Any]) -> str:
    """A row for each config: measured, published and the difference; what it took."""
    rows, lines = results['rows'], []
    papers = [paper_metrics(ROOT / row['config']) for row in rows]
    measured = {name for row in rows for name in row['runs'][0]['metrics']}
    names = [name for name in _SHOWN if name in measured] or sorted(measured)
    compared = [name for name in names if any(name in paper for paper in papers)]
    runs = [run for row in rows for run in row['runs']]
    spent = [key for key in ('cpu', 'gpu') if any(run[f'{key}_minutes'] for run in runs)]
    for row, paper in zip(rows, papers):
        line = {'config': f'`{row["name"]}`', 'parameters': f'{row["parameters"] / 1e6:.2f} M'}
        line['iterations'] = str(row['runs'][0]['iterations'])
        line['seeds'] = ', '.join(str(run['seed']) for run in row['runs'])
        for name in names:
            values = [run['metrics'][name] for run in row['runs'] if name in run['metrics']]
            line[name] = _mean(values) + (
                f' ± {statistics.stdev(values):.1f}' if len(values) > 1 else ''
            )
            if name in compared:
                line[f'{name} (paper)'] = _mean([paper[name]] if name in paper else [])
                both = name in paper and values
                more = statistics.mean(values) - paper[name] if both else 0.0
                line[f'{name}, difference'] = f'{more:+.1f}' if both else '–'
        for key in spent:
            line[f'{key.upper()} min'] = _mean([run[f'{key}_minutes'] for run in row['runs']])
        line['wall min'] = _mean([run['minutes'] for run in row['runs']])
        lines.append(line)
    head = list(lines[0])
    cells = [head, ['---', *['---:'] * (len(head) - 1)], *(line.values() for line in lines)]
    what = ', '.join(f'{key} {value}' for key, value in results['machine'].items())
    foot = (
        f'`{results["command"]}`: {what}. Figures in per cent, of the last checkpoint; over seeds '
        'mean ± standard deviation. Minutes of one training, over all its interruptions; '
        f'{sum(run["minutes"] for run in runs):.0f} in all.'
    )
    return '\n'.join(f'| {" | ".join(row)} |' for row in cells) + f'\n\n{foot}'


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f'{statistics.mean(known):.1f}' if known else '–'


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
    rows = {row['name']: row for row in results['rows']}
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


def _entries(row: Mapping[str, Any] | None, dataset: str) -> list[dict[str, Any]]:
    """The metafile's results of a row, means over its seeds, by task."""
    tasks: dict[str, dict[str, float]] = {}
    runs = [run['metrics'] for run in row['runs']] if row else []
    for name in [name for name in runs[0] if all(name in run for run in runs)] if runs else ():
        task = next(task for start, task in _TASKS.items() if name.startswith(start))
        mean = round(statistics.mean(run[name] for run in runs), 2)
        tasks.setdefault(task, {})[name] = mean
    return [
        {'Task': task, 'Dataset': dataset, 'Metrics': metrics} for task, metrics in tasks.items()
    ]


def copy(folder: Path, results: Mapping[str, Any]) -> None:
    """Show results in the README and the metafile of a folder of configs, and keep them there."""
    readme, metafile = shown_in(folder, results)
    write_metafile(folder / 'metafile.yml', metafile)
    write_atomically(folder / 'README.md', readme.encode())
    write_atomically(folder / 'results.json', _as_json(results))


def disagreements(folder: Path) -> list[str]:
    """Names of the files in a folder that do not show what its ``results.json`` says."""
    readme, metafile = shown_in(folder, read(folder))
    agree = {
        'README.md': _text(folder / 'README.md') == readme,
        'metafile.yml': read_metafile(folder / 'metafile.yml') == metafile,
    }
    return [name for name in agree if not agree[name]]
