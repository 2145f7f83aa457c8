"""The demo: generate data, train UperNet on Vision Mamba, test it, and show what it learnt.

Beside it stand a ViT of equal width, depth and budget, and a classifier of single pixels. All
figures are measured in the run that prints them.
"""

import argparse
import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from common import DATA, ROOT, conclude, draw_curves, make_data, read_curves, run
from matplotlib import pyplot as plt
from mmengine.config import Config
from mmengine.fileio import load
from mmseg.evaluation import IoUMetric
from rich.console import Console
from rich.table import Table

OUT = Path('work_dirs/demo')
CONFIGS = {
    'Vim-nano': 'configs/demo/vim-nano_upernet_1xb8-900_patterns-128x128.py',
    'ViT-nano': 'configs/demo/vit-nano_upernet_1xb8-900_patterns-128x128.py',
}
OURS, VIT = CONFIGS
PICTURES = 16

# The gate of the demo: below it the command fails.
MIN_MIOU, MIN_CLASS_IOU, MIN_RATIO_TO_VIT = 60.0, 20.0, 0.95


@dataclass
class Result:
    """What a model reached.

    Attributes:
        iou: Per class, in per cent, NaN where neither labels nor predictions have the class.
        minutes: Wall time of training with its validations, None where it says nothing.
        params: Number of trained parameters, None likewise.
    """

    iou: np.ndarray
    minutes: float | None = None
    params: int | None = None

    @property
    def miou(self) -> float:
        """Mean over the classes, in per cent."""
        return float(np.nanmean(self.iou))


def pixel_baseline() -> Result:
    """Train and test the classifier of single pixels."""
    report = ROOT / OUT / 'pixel_baseline.json'
    run('tools/analysis_tools/pixel_baseline.py', DATA, '--json', report)
    iou = json.loads(report.read_text())['per_class']
    return Result(np.array([np.nan if value is None else value for value in iou]))


def train_and_test(name: str) -> Result:
    """Train and test one model through the tools of the project."""
    work_dir = OUT / name.lower()
    config = Config.fromfile(ROOT / CONFIGS[name])
    start = time.perf_counter()
    run('tools/train.py', CONFIGS[name], '--work-dir', work_dir / 'train')
    minutes = (time.perf_counter() - start) / 60
    checkpoint = work_dir / 'train' / f'iter_{config.train_cfg.max_iters}.pth'
    dump = work_dir / 'predictions.pkl'
    run(
        *('tools/test.py', CONFIGS[name], checkpoint),
        *('--work-dir', work_dir / 'test', '--dump', dump),
    )
    weights = load_weights(ROOT / checkpoint)
    trained = [value for key, value in weights.items() if 'running' not in key]
    params = sum(value.numel() for value in trained if value.is_floating_point())
    return Result(per_class_iou(ROOT / dump, len(config.metainfo.classes)), minutes, params)


def load_weights(checkpoint: Path) -> dict[str, Any]:
    """The state dict of a checkpoint."""
    from mmvim.compat import load_checkpoint_file

    return load_checkpoint_file(checkpoint, 'cpu')['state_dict']


def per_class_iou(dump: Path, num_classes: int) -> np.ndarray:
    """IoU per class of dumped predictions, in per cent, by mmseg's own metric."""
    areas = [
        IoUMetric.intersect_and_union(
            sample['pred_sem_seg']['data'].squeeze(0),
            sample['gt_sem_seg']['data'].squeeze(0),
            num_classes,
            ignore_index=255,
        )
        for sample in load(dump)
    ]
    totals = [sum(columns) for columns in zip(*areas)]
    return IoUMetric.total_area_to_metrics(*totals, metrics=['mIoU'])['IoU'] * 100


def to_table(results: dict[str, Result], classes: list[str]) -> Table:
    """All results side by side."""
    table = Table(title='Patterns, validation split: IoU in per cent', show_footer=False)
    table.add_column('')
    for name in results:
        table.add_column(name, justify='right')
    for i, name in enumerate(classes):
        table.add_row(name, *(f'{result.iou[i]:.1f}' for result in results.values()))
    table.add_section()
    table.add_row('mIoU', *(f'{result.miou:.1f}' for result in results.values()), style='bold')
    table.add_row(
        'parameters',
        *('-' if r.params is None else f'{r.params / 1e6:.2f} M' for r in results.values()),
    )
    table.add_row(
        'training',
        *('-' if r.minutes is None else f'{r.minutes:.1f} min' for r in results.values()),
    )
    return table


def draw_predictions(dump: Path, folder: Path, config: Config) -> Path:
    """Write pictures of image | truth | prediction, and one sheet of them all with a legend.

    Returns:
        The sheet.
    """
    folder.mkdir(parents=True)
    palette = np.array(config.metainfo.palette, dtype=np.uint8)
    samples = load(dump)
    chosen = samples[:: max(len(samples) // PICTURES, 1)][:PICTURES]
    rows = []
    for sample in chosen:
        image = cv2.imread(str(ROOT / sample['img_path']))
        truth, prediction = (
            palette[sample[key]['data'].squeeze(0).numpy()][..., ::-1]
            for key in ('gt_sem_seg', 'pred_sem_seg')
        )
        gap = np.full((len(image), 4, 3), 255, dtype=np.uint8)
        row = np.hstack([image, gap, truth, gap, prediction])
        row = cv2.resize(row, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(folder / Path(sample['img_path']).name), row)
        rows.append(row[..., ::-1])
    columns = 2
    figure, axes = plt.subplots(
        -(-len(rows) // columns), columns, figsize=(13, 2.15 * -(-len(rows) // columns) + 0.9)
    )
    for axis in axes.flat:
        axis.axis('off')
    for axis, row in zip(axes.flat, rows):
        axis.imshow(row)
    for axis in axes[0]:
        axis.set_title('image  |  truth  |  prediction', fontsize=10)
    handles = [
        plt.Rectangle((0, 0), 1, 1, color=colour / 255, label=name)
        for name, colour in zip(config.metainfo.classes, palette)
    ]
    figure.legend(handles=handles, loc='lower center', ncols=5, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    sheet = folder.with_suffix('.png')
    figure.savefig(sheet, dpi=110)
    plt.close(figure)
    return sheet


def shortcomings(results: dict[str, Result], classes: list[str]) -> list[str]:
    """What the gate finds missing in our result; empty if it passes."""
    ours = results[OURS]
    found = []
    if not ours.miou >= MIN_MIOU:
        found.append(f'mIoU {ours.miou:.1f} is below {MIN_MIOU}')
    for name, iou in zip(classes, ours.iou):
        if not iou >= MIN_CLASS_IOU:
            found.append(f'class {name} has IoU {iou:.1f}, below {MIN_CLASS_IOU}')
    if VIT in results and not ours.miou >= MIN_RATIO_TO_VIT * results[VIT].miou:
        found.append(
            f'mIoU {ours.miou:.1f} is below {MIN_RATIO_TO_VIT} of the ViT ({results[VIT].miou:.1f})'
        )
    return found


def main() -> int:
    """Run the demo; the exit code is 1 if the gate is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--quick', action='store_true', help='leave the ViT out')
    args = parser.parse_args()
    plt.switch_backend('Agg')  # no display needed

    make_data()
    # Everything below is measured afresh; a result of an earlier run must not slip in.
    shutil.rmtree(ROOT / OUT, ignore_errors=True)
    (ROOT / OUT).mkdir(parents=True)
    names = [OURS] if args.quick else [OURS, VIT]
    results = {name: train_and_test(name) for name in names}
    results['pixels'] = pixel_baseline()

    config = Config.fromfile(ROOT / CONFIGS[OURS])
    classes = list(config.metainfo.classes)
    dump = ROOT / OUT / OURS.lower() / 'predictions.pkl'
    sheet = draw_predictions(dump, ROOT / OUT / 'predictions', config)
    curves = {name: read_curves(OUT / name.lower() / 'train') for name in names}
    draw_curves(
        {name: own['loss'] for name, own in curves.items()},
        {name: own['mIoU'] for name, own in curves.items()},
        *('validation mIoU (%)', MIN_MIOU, ROOT / OUT / 'curves.png'),
    )
    console = Console()
    console.print()
    console.print(to_table(results, classes))
    places = {
        'the data': DATA / 'preview.png',
        f'{PICTURES} pictures of image | truth | prediction': OUT / 'predictions',
        'all of them on one sheet': sheet.relative_to(ROOT),
        'loss and mIoU': OUT / 'curves.png',
        'logs and checkpoints': OUT / OURS.lower(),
    }
    return conclude(console, places, shortcomings(results, classes))


if __name__ == '__main__':
    sys.exit(main())
