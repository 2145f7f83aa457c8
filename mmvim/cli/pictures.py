"""Pictures in and out: finding and reading images, drawing data samples with a visualizer."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, VISUALIZERS
from mmengine.visualization import Visualizer

from mmvim.cli.registered_types import accepted_arguments, resolve
from mmvim.datasets.pipelines import pipeline_owner
from mmvim.errors import UserError

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.jp2', '.png', '.ppm', '.tif', '.tiff', '.webp')


def find_images(place: str) -> list[Path]:
    """The image itself, or the images right in a folder, sorted by name.

    Raises:
        UserError: If there is no such place, or no image in the folder.
    """
    path = Path(place).expanduser()
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f'{place} is neither an image nor a folder: it does not exist')
    images = sorted(p for p in path.iterdir() if p.is_file() and p.suffix.lower() in SUFFIXES)
    if not images:
        raise UserError(f'there is no image in {place} (looked for {", ".join(SUFFIXES)})')
    return images


def read_rgb(path: str | Path) -> np.ndarray:
    """Decode an image to (H, W, 3) uint8 in RGB order, turned upright as mmcv does.

    Raises:
        UserError: If it cannot be decoded.
    """
    data = np.fromfile(path, dtype=np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        raise UserError(
            f'{path} ({data.size} bytes) cannot be decoded: it is truncated or not an image'
        )
    return np.ascontiguousarray(image[..., ::-1])


def picture_names(images: list[Path]) -> dict[Path, str]:
    """A name without suffix for each: the stem, or the full name where two share a stem."""
    stems = [image.stem for image in images]
    return {image: image.name if stems.count(image.stem) > 1 else image.stem for image in images}


def build_visualizer(cfg: Config, path: str, dataset_meta: Mapping[str, Any]) -> Visualizer:
    """The visualizer of the config, without storage: it draws to the files it is told.

    Args:
        cfg: The config.
        path: Its file, for the message.
        dataset_meta: Class names and palette.

    Raises:
        UserError: If the config has none, or one that cannot draw data samples.
    """
    if cfg.get('visualizer') is None:
        raise UserError(f'{path} has no visualizer: it needs the one of its library to draw')
    # mmengine keeps visualizers by name for the whole process.
    settings = dict(cfg.visualizer, name=f'pictures-{time.time_ns()}', vis_backends=None)
    visualizer = VISUALIZERS.build(settings)
    if not hasattr(visualizer, 'visualize_cls') and (
        type(visualizer).add_datasample is Visualizer.add_datasample
    ):
        raise UserError(
            f'the visualizer of {path}, {type(visualizer).__name__}, cannot draw data samples: '
            "use the one of the config's library"
        )
    visualizer.dataset_meta = dict(dataset_meta)
    return visualizer


def draw_sample(
    visualizer: Visualizer, image: np.ndarray, sample: Any, file: Path, *, truth: bool
) -> None:
    """Draw the ground truth or the prediction of a sample over its image.

    Args:
        visualizer: Of :func:`build_visualizer`.
        image: (H, W, 3), uint8, RGB.
        sample: The library's data sample.
        file: The picture to write.
        truth: The ground truth instead of the prediction.
    """
    which = dict(draw_gt=truth, draw_pred=not truth, out_file=str(file))
    if hasattr(visualizer, 'visualize_cls'):  # mmpretrain's, which has no add_datasample
        visualizer.visualize_cls(image, sample, **which)
    else:
        visualizer.add_datasample(file.stem, image, data_sample=sample, **which)


def dataset_meta(cfg: Config, checkpoint: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Class names and palette: of the checkpoint, else of the test data set, which is not read."""
    meta = (checkpoint or {}).get('meta')
    saved = meta.get('dataset_meta') if isinstance(meta, Mapping) else None
    if saved:
        return dict(saved)
    dataset = pipeline_owner(cfg.test_dataloader.dataset, 'drawing')
    targets = resolve(dataset.get('type'))
    if any('lazy_init' in accepted_arguments(target) for target in targets):
        return dict(DATASETS.build(dict(dataset, lazy_init=True)).metainfo)
    return dict(dataset.get('metainfo') or {})
