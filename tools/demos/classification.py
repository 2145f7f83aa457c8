"""The demo of classification: train Vision Mamba on single objects, test it, show what it learnt.

Beside it stands a linear classifier of the raw pixels. All figures are measured in the run that
prints them.
"""

import argparse
import sys
from pathlib import Path

import cv2
import torch
from common import DATA, ROOT, begin_anew, conclude, draw_curves, make_data, read_curves, run, save
from matplotlib import pyplot as plt
from mmengine.config import Config
from mmengine.fileio import load
from mmpretrain.evaluation import ConfusionMatrix
from rich.console import Console
from rich.table import Table

from mmvim.datasets.patterns.linear_baselines import BaselineResult, image_baseline, load_objects

CONFIG = 'configs/demo/vim-nano_1xb16-1150_patterns-128x128.py'
OUT = Path('work_dirs/demo-cls')
# Examples of each class.
EXAMPLES = 4

# The gate of the demo: below or above it the command fails.
MIN_TOP1, MAX_LINEAR_TOP1 = 80.0, 40.0


def train_and_test(config: Config) -> float:
    """Train and test through the tools of the project; predictions go to ``predictions.pkl``.

    Returns:
        Minutes of training, with its validations.
    """
    minutes = run('tools/train.py', CONFIG, '--work-dir', OUT / 'train')
    checkpoint = OUT / 'train' / f'iter_{config.train_cfg.max_iters}.pth'
    test = ('--work-dir', OUT / 'test', '--dump', OUT / 'predictions.pkl')
    run('tools/test.py', CONFIG, checkpoint, *test)
    return minutes


def baseline() -> BaselineResult:
    """Fit and test the linear classifier of raw pixels."""
    print('\nLogistic regression on the raw pixels', flush=True)
    return image_baseline(load_objects(ROOT / DATA, 'train'), load_objects(ROOT / DATA, 'val'))


def confusion(predictions: Path, num_classes: int) -> torch.Tensor:
    """Numbers of images (num_classes, num_classes) by class and prediction."""
    samples = load(predictions)
    predicted, true = (
        torch.cat([sample[key] for sample in samples]) for key in ('pred_label', 'gt_label')
    )
    return ConfusionMatrix.calculate(predicted, true, num_classes)


def to_table(counts: torch.Tensor, linear: BaselineResult, classes: list[str]) -> Table:
    """Accuracy of both by class and over all images."""
    table = Table(title='Patterns, validation split: accuracy in per cent')
    table.add_column('')
    table.add_column('Vim-nano', justify='right')
    table.add_column('linear', justify='right')
    ours = 100 * counts.diagonal() / counts.sum(dim=1)
    for name, accuracy, other in zip(classes, ours.tolist(), linear.per_class):
        table.add_row(name, f'{accuracy:.1f}', f'{other:.1f}')
    table.add_section()
    table.add_row('top-1', f'{top1(counts):.1f}', f'{linear.score:.1f}', style='bold')
    return table


def top1(counts: torch.Tensor) -> float:
    """Share of the images on the diagonal, in per cent."""
    return 100 * float(counts.trace() / counts.sum())


def draw_confusion(counts: torch.Tensor, classes: list[str], file: Path) -> None:
    """Draw who is taken for whom."""
    names = [name.replace('_', '\n') for name in classes]
    save(ConfusionMatrix.plot(counts, include_values=True, classes=names, show=False), file)


def draw_examples(predictions: Path, classes: list[str], file: Path) -> None:
    """Draw the first images of every class with what they are taken for, mistakes in red."""
    samples = load(predictions)
    size = (1.7 * len(classes), 2 * EXAMPLES + 0.4)
    figure, axes = plt.subplots(EXAMPLES, len(classes), figsize=size, squeeze=False)
    words = [name.replace('_', ' ') for name in classes]
    for axis in axes.flat:
        axis.axis('off')
    for label, column in enumerate(axes.T):
        about = dict(transform=column[0].transAxes, ha='center', weight='bold')
        column[0].text(0.5, 1.25, words[label], **about)
        mine = [sample for sample in samples if int(sample['gt_label']) == label]
        for axis, sample in zip(column, mine):
            predicted, score = int(sample['pred_label']), float(sample['pred_score'].max())
            axis.imshow(cv2.imread(str(ROOT / sample['img_path']))[..., ::-1])
            colour = 'black' if predicted == label else 'red'
            axis.set_title(f'{words[predicted]}  {score:.2f}', fontsize=8, color=colour)
    save(figure, file)


def shortcomings(counts: torch.Tensor, linear: BaselineResult) -> list[str]:
    """Shortfalls that the gate finds; empty if it passes."""
    found = []
    if not top1(counts) >= MIN_TOP1:
        found.append(f'top-1 {top1(counts):.1f} is below {MIN_TOP1}')
    if not linear.score <= MAX_LINEAR_TOP1:
        found.append(
            f'the linear classifier has top-1 {linear.score:.1f}, above {MAX_LINEAR_TOP1}: the '
            'data give their classes away'
        )
    return found


def main() -> int:
    """Run the demo; the exit code is 1 if the gate is missed."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    make_data()
    begin_anew(OUT)
    config = Config.fromfile(ROOT / CONFIG)
    classes = list(config.metainfo.classes)
    minutes = train_and_test(config)
    linear = baseline()

    predictions = ROOT / OUT / 'predictions.pkl'
    counts = confusion(predictions, len(classes))
    draw_confusion(counts, classes, ROOT / OUT / 'confusion.png')
    draw_examples(predictions, classes, ROOT / OUT / 'examples.png')
    curves = read_curves(OUT / 'train')
    draw_curves(
        {'Vim-nano': curves['loss']},
        {'Vim-nano': curves['accuracy/top1']},
        *('validation top-1 (%)', MIN_TOP1, ROOT / OUT / 'curves.png'),
    )
    table = to_table(counts, linear, classes)
    Console().print('', table, f'training: {minutes:.1f} min', sep='\n')
    places = {
        'the data': DATA / 'preview.png',
        'who is taken for whom': OUT / 'confusion.png',
        f'{EXAMPLES} images of each class with their predictions': OUT / 'examples.png',
        'loss and top-1': OUT / 'curves.png',
        'logs and checkpoints': OUT,
    }
    return conclude(places, shortcomings(counts, linear))


if __name__ == '__main__':
    sys.exit(main())
