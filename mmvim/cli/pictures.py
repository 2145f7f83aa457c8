"""Pictures in and out: finding and reading images, going through them, drawing data samples."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, VISUALIZERS
from mmengine.visualization import Visualizer
from PIL import Image

from mmvim.cli.option_keys import accepted_arguments, resolve
from mmvim.cli.progress import track
from mmvim.cli.run_tool import sentence
from mmvim.datasets.pipelines import pipeline_owner, type_name, without_annotations
from mmvim.errors import UserError, first_line

SUFFIXES = ('.bmp', '.gif', '.jpeg', '.jpg', '.jp2', '.png', '.ppm', '.tif', '.tiff', '.webp')
# What no picture brings about, only code.
_BUGS = (TypeError, AttributeError, KeyError, NameError, ImportError)


def find_images(place: str) -> dict[Path, str]:
    """The image itself, or the images right in a folder, sorted by name.

    Returns:
        dict[Path, str]: A name for what is written of each: the stem, or the full name where the
        stem tells it from no other.

    Raises:
        UserError: If there is no such place, or no image in the folder.
    """
    path = Path(place).expanduser()
    if path.is_file():
        return {path: path.stem}
    if not path.is_dir():
        raise UserError(f'{place} is neither an image nor a folder: it does not exist')
    # A link that leads nowhere is a picture that fails.
    files = (file for file in path.iterdir() if file.is_file() or file.is_symlink())
    images = sorted(p for p in files if p.suffix.lower() in SUFFIXES and not p.is_dir())
    if not images:
        raise UserError(
            f'there is no image in {place} itself (looked for {", ".join(SUFFIXES)}; sub-folders '
            'are not searched)'
        )
    # Two names that are equal would write the same files: 'a.png.jpg' beside 'a.png', too.
    taken = Counter(name for image in images for name in {image.stem, image.name})
    return {image: image.name if taken[image.stem] > 1 else image.stem for image in images}


def read_item(pipeline: Sequence[Any], image: Path) -> tuple[dict[str, Any], np.ndarray]:
    """Read a picture as a data set with this pipeline would.

    Args:
        pipeline (Sequence): Transforms, as config; those that read ground truth are left out.
        image (Path): The file.

    Returns:
        tuple[dict, np.ndarray]: ``inputs`` (C, H, W) with ``data_samples``; and the picture as it
        is in the file, of :func:`to_rgb`.

    Raises:
        UserError: If it cannot be loaded, or has more pixels than Pillow deems safe to decode.
    """
    try:
        with suppress(OSError, ValueError, SyntaxError):  # nothing that Pillow knows
            Image.open(image).close()
    except Image.DecompressionBombError as error:
        raise UserError(f'{image} is not decoded: {sentence(error)}') from error
    item: Any = dict(img_path=str(image), img_id=0, seg_fields=[], instances=[])
    steps, picture = without_annotations(pipeline), None
    for number, transform in enumerate(Compose(steps).transforms, 1):
        try:
            item = transform(item)
        except Exception as error:
            if picture is not None:
                raise
            raise UserError(f'{image} cannot be loaded ({first_line(error)})') from error
        if picture is None and 'img' in item:
            picture = to_rgb(item['img'], steps[:number])
    if picture is None:
        raise UserError(f'no transform of the pipeline loads {image} as img')
    return item, picture


def each_picture(
    images: Iterable[Path], work: Callable[[Path], object], what: str
) -> dict[Path, Exception]:
    """Do something with each of several pictures, whatever is wrong with some of them.

    Args:
        images (Iterable[Path]): The pictures.
        work (Callable): Gets one.
        what (str): What happens to them, for the progress bar.

    Returns:
        dict[Path, Exception]: What went wrong with which, for :func:`raise_failed`; said already.

    Raises:
        OSError: If the system refuses something (a full disk), which no picture is to blame for.
    """
    failed: dict[Path, Exception] = {}
    for image in track(list(images), what):
        try:
            work(image)
        except Exception as error:  # of any library: no picture may cost the others
            if isinstance(error, OSError) and error.errno is not None:
                raise
            failed[image] = error
            kind = '' if isinstance(error, UserError) else f'{type(error).__name__}: '
            print(f'{image} fails: {kind}{sentence(error)}', file=sys.stderr)
    return failed


def raise_failed(failed: Mapping[Path, Exception], total: int) -> None:
    """End a tool that could not do all of its pictures; nothing if it could.

    Args:
        failed (Mapping): As :func:`each_picture` returns it.
        total (int): How many pictures there were.

    Raises:
        UserError: Names the pictures that failed.
        Exception: That of the first picture, if all failed, by what looks like a bug.
    """
    if not failed:
        return
    first, done = next(iter(failed.values())), total - len(failed)
    if not done and isinstance(first, _BUGS):
        raise first
    said = f': {sentence(first)}' if len(failed) == 1 else ''
    others = '; the others are done' if done else ''
    names = ', '.join(map(str, failed))
    raise UserError(f'{len(failed)} of {total} pictures failed, {names}{said}{others}') from first


def to_rgb(image: np.ndarray, pipeline: Sequence[Any]) -> np.ndarray:
    """A picture to look at.

    A ``Normalize`` of the pipeline is undone. What is not in the range of 8 bits, such as 16 bit
    and reflectances, is stretched between the 2nd and the 98th percentile of each channel.

    Args:
        image (np.ndarray): (H, W) or (H, W, C), any dtype. Of more than three channels the first
            three are shown, of two the first.
        pipeline (Sequence): The transforms that made it, as config.

    Returns:
        np.ndarray: (H, W, 3), uint8, RGB.
    """
    image = image if image.ndim == 3 else image[..., None]
    eight_bits, is_float, rgb = image.dtype == np.uint8, image.dtype.kind == 'f', False
    image = np.nan_to_num(image.astype(np.float32))
    for step in pipeline:
        # tifffile and GDAL give the order of the file, the others of mmcv BGR.
        rgb |= step.get('imdecode_backend') == 'tifffile' or 'RSImage' in type_name(step)
        # For pictures of 8 bits, whose range it leaves a little in mmdet.
        eight_bits |= type_name(step) == 'PhotoMetricDistortion'
        if type_name(step) == 'Normalize':
            image = image * np.asarray(step['std'], np.float32) + np.asarray(
                step['mean'], np.float32
            )
            rgb ^= step.get('to_rgb', True)  # mmcv's default
    image = image[..., :3] if image.shape[2] > 2 else image[..., [0, 0, 0]]
    if not (eight_bits or (is_float and 1 < image.max() < 256 and image.min() > -1)):
        low, high = np.percentile(image, (2, 98), axis=(0, 1))
        image = (image - low) / np.where(high > low, high - low, 1) * 255
    image = image.round().clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(image if rgb else image[..., ::-1])


def build_visualizer(cfg: Config, path: str, dataset_meta: Mapping[str, Any]) -> Visualizer:
    """The visualizer of the config, without storage: it draws to the files it is told.

    Raises:
        UserError: If the config, of the file ``path``, has none that draws data samples.
    """
    if cfg.get('visualizer') is None:
        raise UserError(f'{path} has no visualizer: it needs the one of its library to draw')
    # mmengine keeps visualizers by name for the whole process.
    settings = dict(cfg.visualizer, name=f'pictures-{time.time_ns()}', vis_backends=None)
    visualizer = VISUALIZERS.build(settings)
    draws = type(visualizer).add_datasample is not Visualizer.add_datasample
    if not draws and not hasattr(visualizer, 'visualize_cls'):
        raise UserError(
            f'the visualizer of {path}, {type(visualizer).__name__}, cannot draw data samples: '
            "use the one of the config's library"
        )
    visualizer.dataset_meta = dict(dataset_meta)
    return visualizer


def draw(
    visualizer: Visualizer, image: np.ndarray, sample: Any, file: Path, truth: bool = False
) -> None:
    """Write an image, (H, W, 3), uint8, RGB, with a sample's prediction or ground truth over it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    which = dict(draw_gt=truth, draw_pred=not truth, out_file=str(file))
    if hasattr(visualizer, 'visualize_cls'):  # mmpretrain's, which has no add_datasample
        visualizer.visualize_cls(image, sample, **which)
    else:
        visualizer.add_datasample(file.stem, image, data_sample=sample, **which)


def dataset_meta(cfg: Config, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Class names and palette: of the checkpoint, else of the test data set, which is not read."""
    meta = checkpoint.get('meta')
    saved = meta.get('dataset_meta') if isinstance(meta, Mapping) else None
    if saved:
        return dict(saved)
    dataset = pipeline_owner(cfg.test_dataloader.dataset, 'drawing')
    if 'lazy_init' in accepted_arguments(*resolve(dataset.get('type'))):
        return dict(DATASETS.build(dict(dataset, lazy_init=True)).metainfo)
    return dict(dataset.get('metainfo') or {})
