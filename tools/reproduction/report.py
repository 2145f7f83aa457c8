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
from reproduction.tables import ROOT

BEGIN, END = '<!-- results of {} -->', '<!-- end of results -->'
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
    """Content of the ``results.json`` in a folder: of one table, or by table beside configs."""
    return dict(json.loads(_text(folder / 'results.json') or '{}'))


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


def shown_in(folder: Path, tables: Mapping[str, Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """What the README and the metafile of a folder of configs have to say with these results.

    A table takes the place between its two comments in the README, or a section at the end.

    Args:
        folder (Path): Of the configs of all rows.
        tables (Mapping): Content of its ``results.json``: results by table.

    Returns:
        tuple[str, dict]: Text of the README and content of the metafile.

    Raises:
        UserError: If a comment or an entry of the metafile is missing.
    """
    readme = _text(folder / 'README.md')
    for table, results in tables.items():
        begin = BEGIN.format(table)
        if begin not in readme:
            readme += f'\n## Measured: {table}\n\n{begin}\n{END}\n'
        before, _, rest = readme.partition(begin)
        _, end, after = rest.partition(END)
        if not end or BEGIN.partition('{')[0] in rest.partition(END)[0]:
            raise UserError(f'{folder}/README.md needs the line {END} after the table of {table}')
        readme = f'{before}{begin}\n{to_markdown(results)}\n{end}{after}'
    content = read_metafile(folder / 'metafile.yml')
    rows = {row['name']: row for results in tables.values() for row in results['rows']}
    missing = rows.keys() - {model['Name'] for model in content['Models']}
    if missing:
        raise UserError(
            f'{folder}/metafile.yml lacks {", ".join(sorted(missing))}: '
            '`python tools/analysis_tools/update_metafiles.py` adds entries'
        )
    for model in content['Models']:
        entries = _entries(rows[model['Name']], model) if model['Name'] in rows else []
        entries += [
            entry
            for entry in model.pop('Results', [])
            if all(name.endswith(PAPER) for name in entry['Metrics'])
        ]
        model.update({'Results': entries} if entries else {})
    return readme, content


def _entries(row: Mapping[str, Any], model: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Results of a row for its entry in the metafile, means over the seeds, by task."""
    tasks: dict[str, dict[str, float]] = {}
    runs = [run['metrics'] for run in row['runs']]
    for name in [name for name in runs[0] if all(name in run for run in runs)]:
        task = next(task for start, task in _TASKS.items() if name.startswith(start))
        mean = round(statistics.mean(run[name] for run in runs), 2)
        tasks.setdefault(task, {})[name] = mean
    dataset = model['Metadata']['Training Data']
    return [
        {'Task': task, 'Dataset': dataset, 'Metrics': metrics} for task, metrics in tasks.items()
    ]


def copy(results: Mapping[str, Any]) -> list[Path]:
    """Show the results of a table where its configs are, and keep them there.

    Args:
        results (Mapping): As :func:`write` writes them.

    Returns:
        list[Path]: Folders of the configs.

    Raises:
        UserError: As :func:`shown_in`; then nothing is written.
    """
    parts: dict[Path, list[Any]] = {}
    for row in results['rows']:
        parts.setdefault(ROOT / Path(row['config']).parent, []).append(row)
    files = {}
    for folder, rows in parts.items():
        tables = read(folder) | {results['table']: dict(results, rows=rows)}
        files[folder] = (*shown_in(folder, tables), tables)
    for folder, (readme, metafile, tables) in files.items():
        write_metafile(folder / 'metafile.yml', metafile)
        write_atomically(folder / 'README.md', readme.encode())
        write_atomically(folder / 'results.json', _as_json(tables))
    return list(files)


def disagreements(folder: Path) -> list[str]:
    """Names of the files in a folder that do not show what its ``results.json`` says."""
    readme, metafile = shown_in(folder, read(folder))
    agree = {
        'README.md': _text(folder / 'README.md') == readme,
        'metafile.yml': read_metafile(folder / 'metafile.yml') == metafile,
    }
    return [name for name in agree if not agree[name]]
