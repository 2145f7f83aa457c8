"""Shared parts of the demos: trainings that go on where they were, pictures, the end."""

import hashlib
import json
import os
import runpy
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import interruptible
import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.runner import find_latest_checkpoint
from rich.console import Console
from rich.table import Table

from mmvim.atomic_files import write_atomically
from mmvim.datasets.patterns.generation import MANIFEST
from mmvim.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
DATA = Path('data/patterns')  # as the configs have it, below ROOT
PICTURES = 16
# All that a training's result depends on beside its config and data, below ROOT.
CODE = ('mmvim/**/*.py', 'ops/**/*.py', 'ops/csrc/**/*.[chi]*', 'tools/train.py')
# What the gate of a demo compares: name, value, the least and the greatest that passes.
Check = tuple[str, float, float, float]

matplotlib.use('Agg')  # no display needed


class Training(NamedTuple):
    """A training that has ended.

    Attributes:
        config (str): Its config, below ``ROOT``.
        folder (Path): Work dirs of training and test, and the predictions.
        checkpoint (str): The last one.
        minutes (float): Its time, over all interruptions.
    """

    config: str
    folder: Path
    checkpoint: str
    minutes: float


def run(tool: str, *arguments: Any) -> Any:
    """Run a tool of the project in this process, so that signals reach it."""
    words = [str(word) for word in arguments]
    print(f'\n$ python tools/{tool}.py {" ".join(words)}', flush=True)
    return runpy.run_path(str(ROOT / 'tools' / f'{tool}.py'))['main'](words)


def begin() -> None:
    """Go to ``ROOT``, where configs have their paths from, and make the data that are missing."""
    os.chdir(ROOT)
    interruptible.hold()
    print('The patterns dataset: about a minute on two cores where it is missing', flush=True)
    # A process of its own: the workers of this one would import all that a demo does.
    tool = 'tools/dataset_converters/make_patterns.py'
    command = [sys.executable, tool, '--out', str(DATA), '--if-missing']
    try:
        code = interruptible.run_apart(command)
    except SystemExit:
        Console(stderr=True).show_cursor()  # a progress bar hides it
        raise
    if code:
        sys.exit(code)


def fingerprint(config: str, options: Sequence[str]) -> str:
    """A hash of all that the result of a training depends on."""
    cfg = Config.fromfile(ROOT / config)
    init_cfg = cfg.model.backbone.get('init_cfg') or {}
    files = [DATA / MANIFEST, *([init_cfg['checkpoint']] if 'checkpoint' in init_cfg else [])]
    files += [path for pattern in CODE for path in sorted(ROOT.glob(pattern))]
    parts = [cfg.pretty_text.encode(), *(option.encode() for option in options)]
    parts += [Path(file).read_bytes() for file in files]
    return hashlib.sha256(b'\0'.join(parts)).hexdigest()


def train(config: str, folder: Path, *options: str) -> Training:
    """Train, or take up what an earlier call with the very same ingredients left.

    Args:
        config (str): Below ``ROOT``.
        folder (Path): Kept if it holds (a part of) this training, else emptied.
        *options (str): KEY=VALUE for ``--cfg-options``.
    """
    record, made_of = folder / 'training.json', fingerprint(config, options)
    held = json.loads(record.read_text()) if record.is_file() else {}
    if held.get('made_of') != made_of:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        held = dict(made_of=made_of, minutes=0.0, checkpoint=None)
        write_atomically(record, json.dumps(held).encode())
    if held['checkpoint'] is None:
        print(f'\nTraining of {config}: the log shows the time left (eta)', flush=True)
        start = time.monotonic()
        changes = ('--cfg-options', *options) if options else ()
        try:
            run('train', config, '--work-dir', folder / 'train', '--resume', *changes)
            held['checkpoint'] = find_latest_checkpoint(str(folder / 'train'))
        except SystemExit:  # saved on a signal
            interruptible.say()
            raise
        finally:
            held['minutes'] += (time.monotonic() - start) / 60
            write_atomically(record, json.dumps(held).encode())
    return Training(config, folder, held['checkpoint'], held['minutes'])


def test(training: Training, *options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Metrics of a test, and the predictions."""
    print(f'\nTest of {training.checkpoint} on the validation split', flush=True)
    dump = training.folder / 'predictions.pkl'
    places = ('--work-dir', training.folder / 'test', '--dump', dump)
    metrics = run('test', training.config, training.checkpoint, *places, *options)
    return metrics, load(dump)


def draw_curves(file: Path, trainings: Sequence[Training], *keys: str) -> None:
    """Plot the losses of trainings, and the metrics of their validations."""
    logs = [training.folder / 'train' for training in trainings]
    run('analysis_tools/plot_logs', *logs, '--out', file, '--keys', 'loss', *keys)


def evenly(samples: Sequence[Any], count: int = PICTURES) -> Sequence[Any]:
    """So many of them, spread evenly."""
    return samples[:: max(len(samples) // count, 1)][:count]


def draw_predictions(
    samples: Sequence[Mapping[str, Any]],
    folder: Path,
    draw: Callable[[np.ndarray, Mapping[str, Any]], np.ndarray],
    *,
    title: Callable[[Mapping[str, Any]], str] = lambda sample: Path(sample['img_path']).name,
    columns: int = 2,
    **legend: Any,
) -> None:
    """Write a picture of each sample into a folder, and one sheet of them all beside it.

    Args:
        samples (Sequence[Mapping]): Of a test.
        folder (Path): Made if it is missing.
        draw (Callable): An image (H, W, 3), RGB, and its sample to the picture.
        title (Callable): Of a sample, on the sheet. Defaults to the name of its file.
        columns (int): Of the sheet.
        **legend (Any): As matplotlib takes it, for the foot of the sheet.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = -(-len(samples) // columns)
    figure, axes = plt.subplots(rows, columns, squeeze=False, layout='constrained')
    for axis in axes.flat:
        axis.axis('off')
    for axis, sample in zip(axes.flat, samples):
        picture = draw(cv2.imread(sample['img_path'])[..., ::-1], sample)
        cv2.imwrite(str(folder / Path(sample['img_path']).name), picture[..., ::-1])
        axis.imshow(picture)
        axis.set_title(title(sample), fontsize=8)
    height = 13 / columns * picture.shape[0] / picture.shape[1] + 0.3
    figure.set_size_inches(13, rows * height + bool(legend))
    if legend:
        figure.legend(loc='outside lower center', ncols=5, frameon=False, **legend)
    figure.savefig(folder.with_suffix('.png'), dpi=110)
    plt.close(figure)


def show(title: str, rows: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> None:
    """Print a table, numbers with one decimal and '-' where a column has ended or has None."""
    table = Table('', title=title)
    for name in columns:
        table.add_column(name, justify='right')
    for place, row in enumerate(rows):
        cells = [column[place] if place < len(column) else None for column in columns.values()]
        words = ['-' if x is None else x if isinstance(x, str) else f'{x:.1f}' for x in cells]
        table.add_row(row, *words)
    Console().print('', table)


def conclude(places: Mapping[str, Path], gate: Sequence[Check]) -> None:
    """Say where everything is, then let the gate decide.

    Raises:
        UserError: If a value does not pass.
    """
    console = Console(highlight=False, soft_wrap=True)
    for what, place in {'the data': DATA / 'preview.png', **places}.items():
        console.print(f'{what}: {place.absolute()}')
    missed = [
        f'{name} is {value:.1f}, not {least:.1f} to {most:.1f}'
        for name, value, least, most in gate
        if not least <= value <= most
    ]
    if missed:
        raise UserError(f'the demo fails: {"; ".join(missed)}')
