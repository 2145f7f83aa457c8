"""The demo of classification: train Vision Mamba on single objects, test it, show what it learnt.

Beside it stands a linear classifier of the raw pixels. Interrupted, the same command goes on where
it was; finished, it shows the same again.
"""

import interruptible  # noqa: F401  # first: what follows takes seconds to import

# isort: split
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from mmengine.config import Config
from mmpretrain.evaluation import ConfusionMatrix

from mmvim.cli.arguments import PlainParser
from mmvim.cli.run_tool import run_tool
from mmvim.datasets.patterns.linear_baselines import confusion, image_baseline, load_objects

CONFIG = 'configs/demo/vim-nano_1xb16-1150_patterns-128x128.py'
OUT = Path('work_dirs/demo-cls')
# Examples of each class.
EXAMPLES = 4

# The gate of the demo: below or above it the command fails.
MIN_TOP1, MAX_LINEAR_TOP1 = 80.0, 40.0


def labels(samples: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Classes and predictions (n,)."""
    true, predicted = (
        np.array([int(sample[key]) for sample in samples]) for key in ('gt_label', 'pred_label')
    )
    return true, predicted


def accuracies(counts: np.ndarray) -> list[float]:
    """Of each class, then over all images, in per cent."""
    each = 100 * counts.diagonal() / counts.sum(axis=1)
    return [*each, 100 * counts.trace() / counts.sum()]


def draw_confusion(counts: np.ndarray, classes: Sequence[str], file: Path) -> None:
    """Draw who is taken for whom."""
    names = [name.replace('_', '\n') for name in classes]
    figure = ConfusionMatrix.plot(
        torch.from_numpy(counts), include_values=True, classes=names, show=False
    )
    figure.savefig(file, dpi=110, bbox_inches='tight')


def draw_examples(
    samples: Sequence[Mapping[str, Any]], classes: Sequence[str], folder: Path
) -> None:
    """Draw the first images of every class, and name those that are taken for others."""

    def title(sample: Mapping[str, Any]) -> str:
        (true,), (predicted,) = labels([sample])
        score = float(sample['pred_score'].max())
        wrong = '' if true == predicted else f'{classes[true]}, taken for\n'
        return f'{wrong}{classes[predicted]} {score:.2f}'

    firsts = [
        [sample for sample in samples if int(sample['gt_label']) == label][:EXAMPLES]
        for label in range(len(classes))
    ]
    rows = [sample for row in zip(*firsts) for sample in row]
    common.draw_predictions(rows, folder, lambda image, _: image, title=title, columns=len(classes))


def gate(top1: float, linear: float) -> list[common.Check]:
    """What must hold: a good linear classifier would mean that the data give the classes away."""
    least = ('top-1', top1, MIN_TOP1, 100.0)
    return [least, ('top-1 of the linear classifier', linear, 0.0, MAX_LINEAR_TOP1)]


def main(argv: Sequence[str]) -> None:
    """Run the demo; it fails if the gate is missed."""
    PlainParser('Train, test and picture a classifier on Vision Mamba.').parse_args(argv)
    common.begin()
    classes = Config.fromfile(common.ROOT / CONFIG).metainfo.classes
    training = common.train(CONFIG, OUT)
    _, samples = common.test(training)
    print('\nLogistic regression on the raw pixels', flush=True)
    linear = image_baseline(load_objects(common.DATA, 'train'), load_objects(common.DATA, 'val'))

    counts = confusion(*labels(samples), len(classes))
    draw_confusion(counts, classes, OUT / 'confusion.png')
    draw_examples(samples, classes, OUT / 'examples')
    common.draw_curves(OUT / 'curves.png', [training], 'accuracy/top1')
    columns = {
        'Vim-nano': [*accuracies(counts), f'{training.minutes:.1f} min'],
        'linear': [*linear.per_class, linear.score],
    }
    rows = [*classes, 'top-1', 'training']
    common.show('Patterns, validation split: accuracy in per cent', rows, columns)
    places = {
        'who is taken for whom': OUT / 'confusion.png',
        f'{EXAMPLES} images of each class with their predictions': OUT / 'examples.png',
        'loss and top-1': OUT / 'curves.png',
        'logs and checkpoints': OUT,
    }
    common.conclude(places, gate(columns['Vim-nano'][len(classes)], linear.score))


if __name__ == '__main__':
    sys.exit(run_tool(main))
