"""Detection configs small enough for a test: divided by size alone, nothing is swapped."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config
from scaled_down import SIDE, WIDTH, WIDTH_KEYS, confine, scaled

from mmvim.models import VisionMamba

HEAD_KEYS = ('conv_out_channels', 'fc_out_channels')
SIZE_KEYS = ('scale', 'scales', 'crop_size', 'min_size')
# Queries; points at which a mask is compared; candidates that are sampled or kept.
COUNT_KEYS = ('num_queries', 'num_points', 'num', 'nms_pre', 'max_per_img', 'max_per_image')
# Height and width of the images, and their boxes (x, y, width, height).
TRAIN = (((60, 80), [(10, 5, 44, 40), (30, 20, 0, 25)]), ((90, 60), [(8, 30, 40, 44)]))
TEST = (((70, 50), [(5, 5, 30, 30)]), ((50, 96), [(20, 10, 40, 30)]), ((64, 64), []))


def shrink(cfg: Config, folder: Path) -> None:
    """Divide widths, image sizes and counts, in place, and have one iteration run in ``folder``."""
    model, backbone = cfg.model, cfg.model.backbone
    if 'DETR' in model.type:
        model.bbox_head.embed_dims = 256  # its default, which is to shrink too
    backbone.arch = dict(VisionMamba.arch_zoo[backbone.arch])
    scaled(model, (*WIDTH_KEYS, *HEAD_KEYS), backbone.arch['embed_dims'] // WIDTH)
    backbone.arch['d_state'] = 4
    scaled(model, COUNT_KEYS, 50)
    factor = backbone.img_size // SIDE
    padding = model.data_preprocessor
    if padding.pad_size_divisor == backbone.img_size:  # to that size; otherwise to whole strides
        padding.pad_size_divisor //= factor
    scaled(padding.get('batch_augments', []), ('size',), factor)
    backbone.img_size //= factor
    confine(cfg, folder, 2, SIZE_KEYS, factor)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.ann_file = str(folder / 'data' / cfg.test_dataloader.dataset.ann_file)
    # An untrained detector is sure of nothing.
    settings = model.test_cfg.get('rcnn', model.test_cfg)
    if 'score_thr' in settings:
        settings.score_thr = 0.0


def write_coco(cfg: Config) -> None:
    """Images of mixed sizes, one of them empty, where the config's datasets look for them.

    A box of zero area is among the annotations: COCO has such.
    """
    for loader, samples in ((cfg.train_dataloader, TRAIN), (cfg.test_dataloader, TEST)):
        dataset = loader.dataset
        root = Path(dataset.data_root)
        write_split(root / dataset.data_prefix.img, root / dataset.ann_file, samples)


def write_split(folder: Path, ann_file: Path, samples: Sequence[Any]) -> None:
    """One split in COCO's layout with its 80 classes."""
    from mmdet.datasets import CocoDataset

    generator = np.random.default_rng(0)
    names = CocoDataset.METAINFO['classes']
    content = dict(
        images=[],
        annotations=[],
        categories=[dict(id=i + 1, name=name) for i, name in enumerate(names)],
    )
    folder.mkdir(parents=True)
    for number, ((height, width), boxes) in enumerate(samples):
        pixels = generator.integers(0, 255, (height, width, 3), dtype=np.uint8)
        assert cv2.imwrite(str(folder / f'{number}.jpg'), pixels)
        image = dict(id=number, file_name=f'{number}.jpg', height=height, width=width)
        content['images'].append(image)
        for x, y, w, h in boxes:
            content['annotations'].append(
                dict(
                    id=len(content['annotations']) + 1,
                    image_id=number,
                    category_id=1 + 7 * number,
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=0,
                    segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]],
                )
            )
    ann_file.parent.mkdir(parents=True, exist_ok=True)
    ann_file.write_text(json.dumps(content))
