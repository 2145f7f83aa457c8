"""What the demos share: running the tools of the project, and drawing their logs."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from rich.console import Console

from mmvim.cli.training_logs import Curve, find_logs, read_run

ROOT = Path(__file__).resolve().parents[2]
DATA = Path('data/patterns')


def run(*command: Any) -> None:
    """Run a tool of the project; end the demo as it ended if it fails."""
    words = [str(word) for word in command]
    print(f'\n$ python {" ".join(words)}', flush=True)
    code = subprocess.run([sys.executable, *words], cwd=ROOT).returncode
    if code:
        sys.exit(code)


def make_data() -> None:
    """Generate the patterns dataset unless it is there."""
    run('tools/dataset_converters/make_patterns.py', '--out', DATA, '--if-missing')


def open_work_dir(folder: Path, ingredients: Mapping[str, Any]) -> None:
    """Keep what an earlier call left only if it is a part of this very training.

    Args:
        folder: Of the training; relative to the repository, or absolute.
        ingredients: All that the result depends on, as JSON types.
    """
    record = ROOT / folder / 'ingredients.json'
    if not record.is_file() or json.loads(record.read_text()) != ingredients:
        shutil.rmtree(ROOT / folder, ignore_errors=True)
        (ROOT / folder).mkdir(parents=True)
        record.write_text(json.dumps(ingredients))


def read_curves(work_dir: Path) -> dict[str, Curve]:
    """What a training logged, over all its interruptions, by key."""
    return read_run(find_logs(str(ROOT / work_dir))).curves


def draw_curves(
    losses: Mapping[str, Curve], metrics: Mapping[str, Curve], title: str, gate: float, file: Path
) -> None:
    """Plot training losses, and the metrics of the validations beside them.

    Args:
        losses: By what the legend says.
        metrics: In per cent, likewise.
        title: Of the right plot.
        gate: Height of the line that the metric must reach in the end.
        file: For the picture.
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
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def conclude(console: Console, places: Mapping[str, Path], failures: Sequence[str]) -> int:
    """Say where everything is, and what the gate finds missing.

    Args:
        console: To print on.
        places: Relative to the repository, by what is there.
        failures: A sentence each.

    Returns:
        The exit code of the demo.
    """
    for what, place in places.items():
        console.print(f'{what}: {ROOT / place}', highlight=False, soft_wrap=True)
    for failure in failures:
        console.print(f'error: {failure}', style='red')
    return 1 if failures else 0
