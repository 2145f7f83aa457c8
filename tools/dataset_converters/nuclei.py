"""Bring the nuclei of the 2018 Data Science Bowl into COCO's layout, which configs/nuclei read."""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from mmvim.atomic_files import write_atomically
from mmvim.cli.arguments import PlainParser
from mmvim.cli.prepare import make_writable
from mmvim.cli.progress import track
from mmvim.cli.run_tool import run_tool
from mmvim.errors import UserError

LAYOUT = '<id>/images/<id>.png and <id>/masks/*.png'
# The first split whose bound is above the id's hash.
BOUNDS = {'train': 70, 'val': 85, 'test': 100}


def main(argv: Sequence[str] | None = None) -> None:
    """Check all images and masks, then write them."""
    parser = PlainParser(
        f'Convert the nuclei of stage1_train ({LAYOUT}) to COCO JSON with compressed RLE. The hash '
        'of its id puts an image into train (70%), val (15%) or test (15%).'
    )
    parser.add_argument('source', type=Path, help='folder that holds a folder for each id')
    parser.add_argument('--out', type=Path, required=True, help='for example data/nuclei')
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)

    folders = sorted(path.parent for path in args.source.glob('*/images'))
    if not folders:
        raise UserError(f'{args.source} is not stage1_train: it has no {LAYOUT}')
    odd: Counter[str] = Counter()
    documents: dict[str, dict[str, Any]] = {}
    for folder in track(folders, 'reading masks'):
        split = split_of(folder.name)
        document = documents.setdefault(
            split, dict(images=[], annotations=[], categories=[dict(id=1, name='nucleus')])
        )
        add_image(document, folder, odd)
    make_writable(args.out, '--out')
    for folder in track(folders, 'writing images'):
        image = read_image(folder)
        path = args.out / split_of(folder.name) / f'{folder.name}.png'
        write_atomically(path, cv2.imencode('.png', image)[1].tobytes())
    for split in BOUNDS:
        document = documents.get(split)
        if document is None:
            print(f'{split}: absent, so nothing is written')
            continue
        path = args.out / 'annotations' / f'instances_{split}.json'
        write_atomically(path, json.dumps(document).encode())
        count, nuclei = len(document['images']), len(document['annotations'])
        print(f'{split}: {count} images, {nuclei} nuclei')
    for what, count in odd.items():
        print(f'{count} {what}')
    print(f'{args.out} is complete')


def split_of(image_id: str) -> str:
    """Split of an image: ``int(sha1(id), 16) % 100`` is below 70 (train), 85 (val) or not."""
    share = int(hashlib.sha1(image_id.encode()).hexdigest(), 16) % 100
    return next(split for split, bound in BOUNDS.items() if share < bound)


def read_image(folder: Path) -> np.ndarray:
    """Picture of an id, (H, W, 3) in BGR, whether it is grey, RGB or RGBA on the disk.

    Raises:
        UserError: If it is absent or cannot be decoded.
    """
    path = folder / 'images' / f'{folder.name}.png'
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise UserError(f'{path} is absent or cannot be decoded: unpack the archive again')
    return image


def add_image(document: dict[str, Any], folder: Path, odd: Counter[str]) -> None:
    """Add an id's picture and its nuclei to a COCO document; count what is odd about them.

    Raises:
        UserError: If a picture has no nucleus, or a mask does not fit it.
    """
    height, width = read_image(folder).shape[:2]
    image_id = len(document['images']) + 1
    covered, masks = np.zeros((height, width), bool), set()
    for path in sorted((folder / 'masks').glob('*.png')):
        values = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if values is None:
            raise UserError(f'{path} cannot be decoded: unpack the archive again')
        if values.shape != (height, width):
            raise UserError(f'{path} has shape {values.shape}, but its image {(height, width)}')
        mask = values > 0
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
                segmentation=dict(size=[height, width], counts=packed['counts'].decode()),
            )
        )
    if not masks:
        raise UserError(f'{folder} has no nucleus: unpack the archive again, or take it out')
    document['images'].append(
        dict(id=image_id, file_name=f'{folder.name}.png', height=height, width=width)
    )


if __name__ == '__main__':
    sys.exit(run_tool(main))
