"""The demo: generate data, train UperNet on Vision Mamba, test it, and show what it learnt.

Beside it stand a ViT of equal width, depth and budget, and a classifier of single pixels.
Interrupted, the same command goes on where it was; finished, it shows the same again.
"""

import interruptible  # noqa: F401  # first: what follows takes seconds to import

# isort: split
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import common
import cv2
import numpy as np
from matplotlib.patches import Patch
from mmengine.config import Config

from mmvim.cli.arguments import PlainParser
from mmvim.cli.run_tool import run_tool
from mmvim.datasets.patterns.linear_baselines import (
    confusion,
    intersection_over_union,
    load_scenes,
    pixel_baseline,
)

OUT = Path('work_dirs/demo')
CONFIGS = {
    'Vim-nano': 'configs/demo/vim-nano_upernet_1xb8-900_patterns-128x128.py',
    'ViT-nano': 'configs/demo/vit-nano_upernet_1xb8-900_patterns-128x128.py',
}
OURS, VIT = CONFIGS

# The gate of the demo: below it the command fails.
MIN_MIOU, MIN_CLASS_IOU, MIN_RATIO_TO_VIT = 60.0, 20.0, 0.95


def label_maps(sample: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Truth and prediction (H, W) of a sample."""
    truth, predicted = (sample[key]['data'][0] for key in ('gt_sem_seg', 'pred_sem_seg'))
    return truth.numpy(), predicted.numpy()


def per_class_iou(samples: Sequence[Mapping[str, Any]], num_classes: int) -> list[float]:
    """IoU per class of predictions, in per cent; NaN for one that is nowhere."""
    counts = sum(confusion(*label_maps(sample), num_classes) for sample in samples)
    return intersection_over_union(counts).tolist()


def draw(samples: Sequence[Mapping[str, Any]], metainfo: Mapping[str, Any]) -> None:
    """Pictures of image | truth | prediction."""
    palette = np.array(metainfo['palette'], dtype=np.uint8)

    def beside(image: np.ndarray, sample: Mapping[str, Any]) -> np.ndarray:
        truth, predicted = (palette[labels] for labels in label_maps(sample))
        gap = np.full((len(image), 4, 3), 255, dtype=np.uint8)
        row = np.hstack([image, gap, truth, gap, predicted])
        return cv2.resize(row, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)

    names = zip(metainfo['classes'], palette)
    legend = [Patch(color=colour / 255, label=name) for name, colour in names]
    common.draw_predictions(common.evenly(samples), OUT / 'predictions', beside, handles=legend)


def gate(columns: Mapping[str, Sequence[Any]], classes: Sequence[str]) -> list[common.Check]:
    """What must hold of our mean and classes, and of the mean beside the ViT's."""
    *iou, miou = columns[OURS][: len(classes) + 1]
    checks = [('mIoU', miou, MIN_MIOU, 100.0)]
    checks += [(f'IoU of {name}', x, MIN_CLASS_IOU, 100.0) for name, x in zip(classes, iou)]
    if VIT in columns:
        least = MIN_RATIO_TO_VIT * columns[VIT][len(classes)]
        checks.append(("mIoU beside the ViT's", miou, least, 100.0))
    return checks


def main(argv: Sequence[str]) -> None:
    """Run the demo; it fails if the gate is missed."""
    parser = PlainParser('Train, test and picture UperNet on Vision Mamba.')
    parser.add_argument('--quick', action='store_true', help='leave the ViT out')
    names = [OURS] if parser.parse_args(argv).quick else [OURS, VIT]
    common.begin()
    metainfo = Config.fromfile(common.ROOT / CONFIGS[OURS]).metainfo
    columns, trainings = {}, []
    for name in names:
        trainings.append(common.train(CONFIGS[name], OUT / name.lower()))
        _, samples = common.test(trainings[-1])
        iou = per_class_iou(samples, len(metainfo.classes))
        columns[name] = [*iou, np.nanmean(iou), f'{trainings[-1].minutes:.1f} min']
        if name == OURS:
            draw(samples, metainfo)
    print('\nLogistic regression on the pixels and their neighbours', flush=True)
    pixels = pixel_baseline(load_scenes(common.DATA, 'train'), load_scenes(common.DATA, 'val'))
    columns['pixels'] = [*pixels.per_class, pixels.score]

    common.draw_curves(OUT / 'curves.png', trainings, 'mIoU')
    rows = [*metainfo.classes, 'mIoU', 'training']
    common.show('Patterns, validation split: IoU in per cent', rows, columns)
    places = {
        'pictures of image | truth | prediction': OUT / 'predictions',
        'all of them on one sheet': OUT / 'predictions.png',
        'loss and mIoU': OUT / 'curves.png',
        'logs and checkpoints': OUT / OURS.lower(),
    }
    common.conclude(places, gate(columns, metainfo.classes))


if __name__ == '__main__':
    sys.exit(run_tool(main))
