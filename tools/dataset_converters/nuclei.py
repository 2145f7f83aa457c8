"""Bring the nuclei of the 2018 Data Science Bowl into COCO's layout, which configs/nuclei read."""

import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

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

LAYOUT = '<id>/images/<id>.png and <id>/masks/*.png'
# The first split whose bound is above the id's hash.
BOUNDS = {'train': 70, 'val': 85, 'test': 100}
WHOLE = {'train': 451, 'val': 91, 'test': 122}  # images, of the corrected version


def main(argv: Sequence[str] | None = None) -> None:
    """Check and write one image with its nuclei after the other; where one is wrong, none stays."""
    parser = PlainParser(
        f'Convert the nuclei of stage1_train ({LAYOUT}) to COCO JSON with compressed RLE. The hash '
        'of its id puts an image into train (70%), val (15%) or test (15%).'
    )
    parser.add_argument('source', type=Path, help='folder that holds a folder for each id')
    parser.add_argument('--out', type=Path, required=True, help='for example data/nuclei')
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)

    started = time.monotonic()
    folders = find_folders(args.source)
    odd: Counter[str] = Counter()
    documents: dict[str, dict[str, Any]] = {
        split: dict(images=[], annotations=[], categories=[dict(id=1, name='nucleus')])
        for split in BOUNDS
    }
    with written_whole(args.out, args.source) as out:
        for folder in track(folders, 'converting'):
            split = split_of(folder.name)
            image = read_picture(folder / 'images' / f'{folder.name}.png')
            add_image(documents[split], folder, image.shape[:2], odd)
            write_png(out / split / f'{folder.name}.png', image)
        (out / 'annotations').mkdir()
        for split, document in documents.items():
            if document['images']:
                file = out / 'annotations' / f'instances_{split}.json'
                file.write_text(json.dumps(document))
    for split, document in documents.items():
        count, nuclei = len(document['images']), len(document['annotations'])
        print(
            f'{split}: {split_summary(count, WHOLE[split])}'
            + (f', {nuclei} nuclei' if count else '')
        )
    for what, count in odd.items():
        if count:
            print(f'{count} {what}')
    print(f'{args.out} is complete, after {time.monotonic() - started:.0f} s')


def find_folders(source: Path) -> list[Path]:
    """The folder of each id, sorted; hidden ones and what macOS adds to archives are left out.

    Raises:
        UserError: If none of them holds its picture.
    """
    check_source(source)
    found = sorted(p for p in source.glob('[!.]*') if p.is_dir() and p.name != '__MACOSX')
    if not any((folder / 'images' / f'{folder.name}.png').is_file() for folder in found):
        raise UserError(f'{source} is not stage1_train: it has no {LAYOUT}')
    return found


def split_of(image_id: str) -> str:
    """Split of an image: ``int(sha1(id), 16) % 100`` is below 70 (train), 85 (val) or not."""
    share = int(hashlib.sha1(os.fsencode(image_id)).hexdigest(), 16) % 100
    return next(split for split, bound in BOUNDS.items() if share < bound)


def add_image(
    document: dict[str, Any], folder: Path, size: tuple[int, int], odd: Counter[str]
) -> None:
    """Add an id's picture and its nuclei to a COCO document; count what is odd about them.

    Args:
        document (dict[str, Any]): Of the split.
        folder (Path): Of the id.
        size (tuple[int, int]): Height and width of the picture.
        odd (Counter[str]): Of all images.

    Raises:
        UserError: If there is no nucleus, or if a mask cannot be read, does not fit the picture
            or holds more than one nucleus.
    """
    image_id = len(document['images']) + 1
    covered, masks = np.zeros(size, bool), set()
    for path in sorted((folder / 'masks').glob('[!.]*.png')):
        values = read_mask(path, size)
        mask = values > 0
        levels = np.unique(values[mask])
        if len(levels) > 1:
            raise UserError(
                f'{path} holds the values {levels[0]} and {levels[1]}: a mask is of one nucleus, '
                '255 where it is and 0 elsewhere'
            )
        packed = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        if not mask.any() or packed['counts'] in masks:
            odd[('duplicate' if mask.any() else 'empty') + ' masks left out'] += 1
            continue
        odd['masks overlap another one'] += bool((covered & mask).any())
        covered |= mask
        masks.add(packed['counts'])
        document['annotations'].append(
            dict(
                id=len(document['annotations']) + 1,
                image_id=image_id,
                category_id=1,
                iscrowd=0,
                area=int(mask.sum()),
                bbox=coco_mask.toBbox(packed).tolist(),
                segmentation=dict(size=list(size), counts=packed['counts'].decode()),
            )
        )
    if not masks:
        raise UserError(f'{folder} has no nucleus: unpack the archive again, or take it out')
    document['images'].append(
        dict(id=image_id, file_name=f'{folder.name}.png', height=size[0], width=size[1])
    )


if __name__ == '__main__':
    sys.exit(run_tool(main))
