"""Shared parts of the demos: running the project's tools, drawing their logs and predictions."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from rich.console import Console

from mmvim.cli.training_logs import Curve, find_logs, read_run

ROOT = Path(__file__).resolve().parents[2]
DATA = Path('data/patterns')
PICTURES = 16
T = TypeVar('T')

matplotlib.use('Agg')  # no display needed


def run(*command: Any) -> float:
    """Run a tool of the project, and end the demo as it ended if it fails; the minutes it took."""
    words = [str(word) for word in command]
    print(f'\n$ python {" ".join(words)}', flush=True)
    start = time.perf_counter()
    code = subprocess.run([sys.executable, *words], cwd=ROOT).returncode
    if code:
        sys.exit(code)
    return (time.perf_counter() - start) / 60


def make_data() -> None:
    """Generate the patterns dataset unless it is there."""
    run('tools/dataset_converters/make_patterns.py', '--out', DATA, '--if-missing')


def begin_anew(folder: Path) -> None:
    """An empty folder: everything is measured afresh, no result of an earlier run slips in."""
    shutil.rmtree(ROOT / folder, ignore_errors=True)
    (ROOT / folder).mkdir(parents=True)


def open_work_dir(folder: Path, ingredients: Mapping[str, Any]) -> None:
    """Keep what an earlier call left only if it is a part of this very training.

    ``ingredients`` is all that its result depends on, as JSON types.
    """
    record = ROOT / folder / 'ingredients.json'
    if not record.is_file() or json.loads(record.read_text()) != ingredients:
        begin_anew(folder)
        record.write_text(json.dumps(ingredients))


def read_curves(work_dir: Path) -> dict[str, Curve]:
    """Logged values of a training, over all its interruptions, by key."""
    return read_run(find_logs(str(ROOT / work_dir))).curves


def draw_curves(
    losses: Mapping[str, Curve], metrics: Mapping[str, Curve], title: str, gate: float, file: Path
) -> None:
    """Plot training losses, and the metrics of the validations (per cent) beside them.

    ``gate`` is the height of the line that the metric must reach in the end.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for axis, curves, marker in ((left, losses, None), (right, metrics, 'o')):
        for name, curve in curves.items():
            axis.plot(curve.steps, curve.values, label=name, marker=marker)
    left.set(title='training loss', xlabel='iteration', yscale='log')
    right.set(title=title, xlabel='iteration', ylim=(0, 100))
    right.axhline(gate, color='grey', linestyle=':', label='gate')
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    save(figure, file)


def chosen(samples: Sequence[T]) -> Sequence[T]:
    """``PICTURES`` of them, spread evenly."""
    return samples[:: max(len(samples) // PICTURES, 1)][:PICTURES]


def draw_sheet(
    pictures: Sequence[np.ndarray], title: str, file: Path, legend: Sequence[Any] = ()
) -> None:
    """Put wide pictures (H, W, 3), RGB, into two columns over a legend."""
    rows = -(-len(pictures) // 2)
    height = max(len(picture) / picture.shape[1] for picture in pictures)
    figure, axes = plt.subplots(rows, 2, figsize=(13, 6.5 * height * rows + 0.9), squeeze=False)
    for axis in axes.flat:
        axis.axis('off')
    for axis, picture in zip(axes.flat, pictures):
        axis.imshow(picture)
    for axis in axes[0]:
        axis.set_title(title, fontsize=10)
    if legend:
        figure.legend(handles=legend, loc='lower center', ncols=5, fontsize=9, frameon=False)
    save(figure, file, rect=(0, 0.05 if legend else 0, 1, 1))


def save(figure: Any, file: Path, **layout: Any) -> None:
    """Write a figure."""
    figure.tight_layout(**layout)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def conclude(places: Mapping[str, Path], failures: Sequence[str]) -> int:
    """Say where everything is (relative to the repository), and what the gate finds missing.

    Returns:
        The exit code of the demo.
    """
    console = Console(highlight=False, soft_wrap=True)
    for what, place in places.items():
        console.print(f'{what}: {ROOT / place}')
    for failure in failures:
        console.print(f'error: {failure}', style='red')
    return 1 if failures else 0
