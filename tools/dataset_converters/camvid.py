"""Bring CamVid from SegNet's layout into the one that configs/camvid read."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmvim.cli.arguments import PlainParser
from mmvim.cli.dataset_converter import (
    check_source,
    read_mask,
    read_picture,
    split_summary,
    write_png,
    written_whole,
)
from mmvim.cli.progress import track
from mmvim.cli.run_tool import run_tool
from mmvim.errors import UserError

SPLITS = {'train': 367, 'val': 101, 'test': 233}  # with their images
LAYOUT = ', '.join(f'{split}/ with {split}annot/' for split in SPLITS)
IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg')
VOID, IGNORED = 11, 255

Pair = tuple[Path, Path]


def main(argv: Sequence[str] | None = None) -> None:
    """Check and write one image with its mask after the other; where one is wrong, none stays."""
    parser = PlainParser(f'Convert CamVid in the layout of SegNet ({LAYOUT}) for configs/camvid.')
    parser.add_argument('source', type=Path, help='folder that holds the splits')
    parser.add_argument('--out', type=Path, required=True, help='for example data/camvid')
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)

    started = time.monotonic()
    check_source(args.source)
    pairs = {split: find_pairs(args.source, split) for split in SPLITS}
    if not any(pairs.values()):
        raise UserError(f'{args.source} is not CamVid in the layout of SegNet: it has no {LAYOUT}')
    check_splits(pairs)
    everything = [(split, pair) for split in SPLITS for pair in pairs[split]]
    with written_whole(args.out, args.source) as out:
        for split, pair in track(everything, 'converting'):
            for folder, pixels in zip(('images', 'annotations'), load(pair), strict=True):
                write_png(out / folder / split / f'{pair[0].stem}.png', pixels)
    for split, whole in SPLITS.items():
        print(f'{split}: {split_summary(len(pairs[split]), whole)}')
    print(f'{args.out} is complete, after {time.monotonic() - started:.0f} s')


def find_pairs(source: Path, split: str) -> list[Pair]:
    """Images of a split with their masks, sorted; empty where the split is absent.

    Raises:
        UserError: If an image has no mask, a mask no image, or if ``<split>.txt``, where it is
            there, names other images.
    """
    folder = source / split
    images, masks = by_stem(folder, IMAGE_SUFFIXES), by_stem(source / f'{split}annot', ('.png',))
    alone = sorted(images.keys() ^ masks.keys())
    if alone:
        raise UserError(
            f'{source}: {len(alone)} of the images and masks of {split} have no partner '
            f'({alone[0]} for one): unpack the archive again'
        )
    names = folder.with_name(f'{split}.txt')
    if names.is_file():
        # A line is the image's path and the mask's, whose names are equal and may hold blanks.
        lines = names.read_text(encoding='utf-8', errors='surrogateescape').splitlines()
        different = sorted(
            {Path(line.strip()).stem for line in lines if line.strip()} ^ images.keys()
        )
        if different:
            raise UserError(
                f'{names} and {folder} differ in {len(different)} names ({different[0]} for one): '
                'unpack the archive again, or take the list away'
            )
    return [(images[name], masks[name]) for name in images]


def by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """The images right in a folder by their name without suffix, sorted; hidden ones left out.

    Raises:
        UserError: If two have one name.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.glob('[!.]*')):
        if path.suffix.lower() in suffixes:
            other = found.setdefault(path.stem, path)
            if other != path:
                raise UserError(f'{other} and {path.name} have one name: take one of them away')
    return found


def check_splits(pairs: dict[str, list[Pair]]) -> None:
    """Refuse an image that belongs to two splits.

    Raises:
        UserError: If there is one.
    """
    seen: dict[str, str] = {}
    for split, found in pairs.items():
        for image, _ in found:
            if image.stem in seen:
                raise UserError(
                    f'{image.stem} is in {seen[image.stem]} and in {split}: take it out of one'
                )
            seen[image.stem] = split


def load(pair: Pair) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image (H, W, 3) in RGB, and labels (H, W), with 255 where a pixel has no class.

    Raises:
        UserError: If one cannot be read, or if the mask does not fit image or classes.
    """
    image = read_picture(pair[0])
    labels = read_mask(pair[1], image.shape[:2])
    if labels.max() > VOID:
        raise UserError(
            f'{pair[1]} holds label {labels.max()}: classes are 0 to {VOID - 1}, {VOID} is void'
        )
    return image, np.where(labels == VOID, np.uint8(IGNORED), labels)


if __name__ == '__main__':
    sys.exit(run_tool(main))
