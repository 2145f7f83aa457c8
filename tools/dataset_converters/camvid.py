"""Bring CamVid from SegNet's layout into the one that configs/camvid read."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mmvim.atomic_files import write_atomically
from mmvim.cli.arguments import PlainParser
from mmvim.cli.prepare import make_writable
from mmvim.cli.progress import track
from mmvim.cli.run_tool import run_tool
from mmvim.errors import UserError

SPLITS = ('train', 'val', 'test')
LAYOUT = ', '.join(f'{split}/ with {split}annot/' for split in SPLITS)
IMAGE_SUFFIXES = ('.png', '.jpg')
VOID, IGNORED = 11, 255

Pair = tuple[Path, Path]


def main(argv: Sequence[str] | None = None) -> None:
    """Check all images and masks, then write them."""
    parser = PlainParser(f'Convert CamVid in the layout of SegNet ({LAYOUT}) for configs/camvid.')
    parser.add_argument('source', type=Path, help='folder that holds the splits')
    parser.add_argument('--out', type=Path, required=True, help='for example data/camvid')
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)

    pairs = {split: find_pairs(args.source, split) for split in SPLITS}
    if not any(pairs.values()):
        raise UserError(f'{args.source} is not CamVid in the layout of SegNet: it has no {LAYOUT}')
    check_splits(pairs)
    everything = [(split, pair) for split in SPLITS for pair in pairs[split]]
    for _, pair in track(everything, 'checking'):
        load(pair)
    make_writable(args.out, '--out')
    for split, pair in track(everything, 'writing'):
        for folder, pixels in zip(('images', 'annotations'), load(pair), strict=True):
            path = args.out / folder / split / f'{pair[0].stem}.png'
            write_atomically(path, cv2.imencode('.png', pixels)[1].tobytes())
    for split in SPLITS:
        count = len(pairs[split])
        print(f'{split}: {count} images' if count else f'{split}: absent, so nothing is written')
    print(f'{args.out} is complete')


def find_pairs(source: Path, split: str) -> list[Pair]:
    """Images of a split with their masks, sorted; empty where the split is absent.

    Raises:
        UserError: If an image has no mask, or a mask no image.
    """
    images, masks = (
        {path.stem: path for path in sorted(folder.glob('*')) if path.suffix in suffixes}
        for folder, suffixes in (
            (source / split, IMAGE_SUFFIXES),
            (source / f'{split}annot', ('.png',)),
        )
    )
    alone = sorted(images.keys() ^ masks.keys())
    if alone:
        raise UserError(
            f'{source}: {len(alone)} of the images and masks of {split} have no partner '
            f'({alone[0]} for one): unpack the archive again'
        )
    return [(images[name], masks[name]) for name in images]


def check_splits(pairs: dict[str, list[Pair]]) -> None:
    """Refuse an image that belongs to two splits.

    Raises:
        UserError: If there is one.
    """
    seen: dict[str, str] = {}
    for split, found in pairs.items():
        for image, _ in found:
            if image.stem in seen:
                raise UserError(f'{image.stem} is in {seen[image.stem]} and in {split}')
            seen[image.stem] = split


def load(pair: Pair) -> tuple[NDArray[Any], NDArray[Any]]:
    """Image (H, W, 3) in BGR, and labels (H, W), with 255 where a pixel has no class.

    Raises:
        UserError: If one cannot be decoded, or if the mask does not fit image or classes.
    """
    image = cv2.imread(str(pair[0]), cv2.IMREAD_COLOR)
    labels = cv2.imread(str(pair[1]), cv2.IMREAD_UNCHANGED)
    for path, pixels in zip(pair, (image, labels), strict=True):
        if pixels is None:
            raise UserError(f'{path} cannot be decoded: unpack the archive again')
    if labels.shape != image.shape[:2]:
        raise UserError(
            f'{pair[1]} has shape {labels.shape}, but its image {image.shape[:2]}: a mask holds '
            'one class index for each pixel'
        )
    if labels.max() > VOID:
        raise UserError(
            f'{pair[1]} holds label {labels.max()}: classes are 0 to {VOID - 1}, {VOID} is void'
        )
    return image, np.where(labels == VOID, IGNORED, labels).astype(np.uint8)


if __name__ == '__main__':
    sys.exit(run_tool(main))
