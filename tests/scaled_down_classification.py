"""Classification configs small enough for a test: divided by size alone, nothing is swapped."""

from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config
from scaled_down import SIDE, WIDTH, confine, scaled

from mmvim.models import VisionMamba

SIZE_KEYS = ('img_size', 'scale', 'crop_size')
# Numbers of the classes of the images of each split.
LABELS = dict(train=(0, 3, 3, 7), val=(3, 5, 7))


def shrink(cfg: Config, folder: Path) -> None:
    """Divide widths and image sizes, in place, and have one iteration run in ``folder``."""
    backbone = cfg.model.backbone
    if backbone.type == 'mmvim.VisionMamba':  # others are narrow enough
        backbone.arch = dict(VisionMamba.arch_zoo[backbone.arch])
        factor = max(backbone.arch['embed_dims'] // WIDTH, 1)
        backbone.arch.update(embed_dims=backbone.arch['embed_dims'] // factor, d_state=4)
        cfg.model.head.in_channels //= factor
    factor = backbone.get('img_size', 128) // SIDE  # a ResNet of patterns has none
    scaled(cfg.model, SIZE_KEYS, factor)
    confine(cfg, folder, 4, SIZE_KEYS, factor)
    cfg.load_from = backbone.init_cfg = None


def write_images(cfg: Config) -> None:
    """A few images per split where the config's datasets look for them."""
    generator = np.random.default_rng(0)
    for split, labels in LABELS.items():
        dataset = cfg[f'{split}_dataloader'].dataset
        root = Path(dataset.data_root)
        listed = []
        for number, label in enumerate(labels):
            if dataset.type == 'ImageNet':
                # Photos come in all sizes.
                size = (SIDE + 10 * number, SIDE + 20)
                name = f'{number}.jpg'
                listed.append(f'{name} {label}')
            else:
                size = (SIDE, SIDE)
                name = f'{dataset.metainfo.classes[label]}/{number}.png'
            file = root / dataset.get('data_prefix', split) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 255, (*size, 3), dtype=np.uint8)
            assert cv2.imwrite(str(file), pixels)
        if listed:
            (root / 'meta').mkdir(exist_ok=True)
            (root / 'meta' / f'{split}.txt').write_text('\n'.join(listed) + '\n')
        else:
            for name in dataset.metainfo.classes:
                (root / dataset.data_prefix / name).mkdir(exist_ok=True)
