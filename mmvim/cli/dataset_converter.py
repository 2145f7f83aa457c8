"""What the converters of data sets share: reading one file, and writing all files or none."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmvim.cli.prepare import make_writable
from mmvim.errors import UserError, first_line

_UNFINISHED = '.unfinished'
_PICTURE_MODES = ('1', 'L', 'LA', 'P', 'RGB', 'RGBA')


def check_source(source: Path) -> None:
    """Refuse what is no folder.

    Raises:
        UserError: If it is an archive, or not there.
    """
    if source.is_file():
        raise UserError(
            f'{source} is a file: unpack it (python -m zipfile -e {source.name} FOLDER) and give '
            'the folder'
        )
    if not source.is_dir():
        raise UserError(f'{source} does not exist: give the folder of the unpacked archive')


@contextmanager
def written_whole(out: Path, source: Path) -> Iterator[Path]:
    """A folder to write a data set to, whose content is moved to ``out`` when it is complete.

    Whatever ends the writing before, nothing of it stays. What a killed process had to leave, the
    next one removes.

    Args:
        out (Path): Made where missing.
        source (Path): The folder that is read.

    Yields:
        Path: A hidden folder in ``out``.

    Raises:
        UserError: If ``out`` cannot be written, holds anything, or lies in ``source``.
    """
    out, source = out.expanduser().resolve(), source.resolve()
    if source in (out, *out.parents):
        raise UserError(f'--out {out} is {source}, which is read, or lies in it: give another')
    made = not out.exists()
    unfinished = make_writable(out, '--out') / _UNFINISHED
    held = sorted(path.name for path in out.iterdir() if path != unfinished)
    if held:
        raise UserError(
            f'--out {out} is not empty, it holds {held[0]}: remove it, or give another folder'
        )
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir()
        yield unfinished
        for path in sorted(unfinished.iterdir()):
            path.rename(out / path.name)
        unfinished.rmdir()
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if made:
            with suppress(OSError):
                out.rmdir()
        if isinstance(error, OSError):
            raise UserError(f'--out {out} cannot be written ({error.strerror})') from error
        raise


def read_picture(path: Path) -> NDArray[np.uint8]:
    """A picture of 8 bits as (H, W, 3) in RGB: grey is repeated, alpha left out.

    Raises:
        UserError: If it is absent, cannot be decoded or has more bits.
    """
    image = _decode(path)
    if image.mode not in _PICTURE_MODES:
        raise UserError(f'{path} has the mode {image.mode}: a picture has 8 bits a channel')
    return np.asarray(image.convert('RGB'))


def read_mask(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A mask of one channel and 8 bits as (H, W).

    Args:
        path (Path): The file.
        size (tuple[int, int]): Height and width of its picture.

    Raises:
        UserError: If it is absent, cannot be decoded, has colours or more bits, or another size.
    """
    image = _decode(path)
    if image.mode not in ('1', 'L'):
        raise UserError(
            f'{path} has the mode {image.mode}: a mask has one channel of 8 bits (L), and no '
            'colours or palette'
        )
    values = np.asarray(image).astype(np.uint8)
    if values.shape != size:
        raise UserError(f'{path} has shape {values.shape}, but its image {size}')
    return values


def _decode(path: Path) -> Image.Image:
    """The decoded image; Pillow refuses a truncated file, whose rest OpenCV makes up."""
    try:
        with Image.open(path) as image:
            image.load()
    except FileNotFoundError as error:
        raise UserError(f'{path} is absent: unpack the archive again') from error
    except Exception as error:  # of many types, one for each way in which a file is broken
        raise UserError(
            f'{path} cannot be decoded ({first_line(error)}): unpack the archive again'
        ) from error
    return image


def write_png(path: Path, pixels: NDArray[Any]) -> None:
    """Write (H, W) or (H, W, 3) in RGB; the folder is made where missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else pixels
    path.write_bytes(cv2.imencode('.png', pixels)[1].tobytes())


def split_summary(count: int, whole: int) -> str:
    """How many images a split has, beside how many the published one has."""
    if not count:
        return 'absent, so nothing is written'
    return f'{count} images' + (f' (of {whole})' if count != whole else '')
