"""The patterns dataset as files: which there are, and what is in each.

Three layouts of the same classes::

    ade/images/{training,validation}/000000.png          RGB
    ade/annotations/{training,validation}/000000.png     one byte a pixel, 0 is background
    coco/{train,val}/000000.png                          the same images
    coco/annotations/instances_{train,val}.json          visible masks and boxes
    imagefolder/{train,val}/<texture>/000000.png         one object an image

An item of a layout depends on the seed, its split and its number alone, so items may be made in
any order by any number of processes.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mmvim.datasets.patterns.scenes import Scene, make_scene
from mmvim.datasets.patterns.textures import CLASSES, PALETTE, TEXTURE_CLASSES
from mmvim.errors import UsageError

Split = Literal['train', 'val']
SPLITS: tuple[Split, ...] = get_args(Split)
LAYOUTS: tuple[str, ...] = ('ade', 'coco', 'imagefolder')
# Raised whenever the same request would give other pictures than before.
VERSION = 1

CLASSES_FILE = 'classes.json'
PREVIEW_FILE = 'preview.png'
ADE_FOLDERS = {'train': 'training', 'val': 'validation'}
# Textures repeat every 5 to 14 pixels, whatever the size.
_VALID = {'train': (1, 10**6), 'val': (1, 10**6), 'size': (64, 2048), 'seed': (0, 2**63)}


@dataclass(frozen=True)
class PatternsSpec:
    """Specification of a patterns dataset; equal specs give equal files.

    Attributes:
        train (int): Number of training images (scenes, and as many single objects).
        val (int): Number of validation images.
        size (int): Side of an image, in pixels.
        seed (int): Seed of all chance, not negative.
        layouts (Sequence[str]): Subset of ``LAYOUTS``, kept in their order.
        version (int): Version of the generator; files of another one are not taken for these.

    Raises:
        UsageError: If a value is out of range.
    """

    train: int = 2000
    val: int = 200
    size: int = 128
    seed: int = 0
    layouts: Sequence[str] = LAYOUTS
    version: int = VERSION

    def __post_init__(self) -> None:
        for name, (least, most) in _VALID.items():
            if not least <= getattr(self, name) <= most:
                raise UsageError(f'--{name} is {getattr(self, name)}: valid are {least} to {most}')
        ordered = [name for name in LAYOUTS if name in self.layouts]
        if not ordered or set(ordered) != set(self.layouts):
            raise UsageError(f'--layouts is {self.layouts}: choose from {" ".join(LAYOUTS)}')
        object.__setattr__(self, 'layouts', ordered)

    def __str__(self) -> str:
        """One line for people."""
        version = '' if self.version == VERSION else f', of version {self.version}'
        counts = f'{self.train} + {self.val} images of {self.size} pixels, seed {self.seed}'
        return f'{counts}, {" ".join(self.layouts)}{version}'


@dataclass(frozen=True)
class Item:
    """One unit of work: a scene, or a single object.

    Attributes:
        single (bool): Whether it is a picture of one object for the ImageFolder layout.
        split (Split): 'train' or 'val'.
        index (int): Number of the picture in its split.
    """

    single: bool
    split: Split
    index: int

    @property
    def file_name(self) -> str:
        """Name of the item's picture."""
        return f'{self.index:06d}.png'

    @property
    def label(self) -> int:
        """Class of a single object; every class comes equally often."""
        return self.index % len(TEXTURE_CLASSES) + 1


def items(spec: PatternsSpec) -> list[Item]:
    """All items of a dataset, those of one kind and split in order of their numbers."""
    kinds = {layout == 'imagefolder' for layout in spec.layouts}
    return [
        Item(single, split, index)
        for single in sorted(kinds)
        for split in SPLITS
        for index in range(getattr(spec, split))
    ]


def item_paths(spec: PatternsSpec, item: Item) -> tuple[list[Path], Path | None]:
    """The files of an item below the dataset's folder: its image, once a layout, and its labels."""
    if item.single:
        folder = Path('imagefolder', item.split, TEXTURE_CLASSES[item.label - 1])
        return [folder / item.file_name], None
    ade = Path(ADE_FOLDERS[item.split], item.file_name)
    paths = {'ade': 'ade/images' / ade, 'coco': Path('coco', item.split, item.file_name)}
    images = [path for layout, path in paths.items() if layout in spec.layouts]
    return images, 'ade/annotations' / ade if 'ade' in spec.layouts else None


def coco_path(split: Split) -> Path:
    """The annotation file of a split, below the dataset's folder."""
    return Path('coco', 'annotations', f'instances_{split}.json')


def files(spec: PatternsSpec) -> list[Path]:
    """Every file of a dataset but its manifest, below the dataset's folder."""
    found = [Path(CLASSES_FILE), Path(PREVIEW_FILE)]
    if 'coco' in spec.layouts:
        found += map(coco_path, SPLITS)
    for item in items(spec):
        images, labels = item_paths(spec, item)
        found += images if labels is None else [*images, labels]
    return found


def folders(spec: PatternsSpec) -> list[Path]:
    """Every folder below the dataset's folder, the outer ones first."""
    inner = {path.parent for path in files(spec)}
    if 'imagefolder' in spec.layouts:
        # All classes even where a tiny split has none: readers number the folders they see.
        inner |= {Path('imagefolder', split, name) for split in SPLITS for name in TEXTURE_CLASSES}
    return sorted(inner.union(*(folder.parents for folder in inner)) - {Path('.')})


def make_item(spec: PatternsSpec, item: Item) -> Scene:
    """Draw the scene of an item."""
    # Scenes and single objects are different draws.
    rng = np.random.default_rng((spec.seed, int(item.single), SPLITS.index(item.split), item.index))
    return make_scene(rng, spec.size, (item.label,) if item.single else ())


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write a picture, (H, W) or (H, W, 3) RGB, as PNG."""
    if image.ndim == 3:
        image = np.ascontiguousarray(image[..., ::-1])
    # Noise does not compress: the quickest level costs a few per cent of space.
    _, data = cv2.imencode('.png', image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    path.write_bytes(data.tobytes())


def write_item(out: Path, spec: PatternsSpec, item: Item) -> list[dict[str, Any]]:
    """Draw an item and write its pictures into folders that exist.

    Returns:
        list: The COCO annotations of the item's objects, without ``id``.
    """
    scene = make_item(spec, item)
    (first, *copies), labels = item_paths(spec, item)
    write_png(out / first, scene.image)
    for copy in copies:
        try:
            os.link(out / first, out / copy)
        except OSError:  # a file system without hard links
            shutil.copyfile(out / first, out / copy)
    if labels is not None:
        write_png(out / labels, scene.labels)
    return [coco_annotation(thing.mask, thing.label, item.index) for thing in scene.objects]


def coco_annotation(mask: NDArray[np.bool_], label: int, image_id: int) -> dict[str, Any]:
    """One entry of COCO's ``annotations``, without ``id``: box, area and visible mask."""
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {
        'image_id': image_id,
        'category_id': label,
        'bbox': [int(number) for number in coco_mask.toBbox(encoded)],
        'area': int(coco_mask.area(encoded)),
        'segmentation': {**encoded, 'counts': encoded['counts'].decode()},
        'iscrowd': 0,
    }


def write_coco(
    out: Path, spec: PatternsSpec, split: Split, annotations: list[dict[str, Any]]
) -> None:
    """Write the annotation file of a split from what ``write_item`` returned for its scenes."""
    document = {
        'info': {'description': f'mmvim patterns, {split}, seed {spec.seed}'},
        'images': [
            {
                'id': index,
                'file_name': Item(False, split, index).file_name,
                'width': spec.size,
                'height': spec.size,
            }
            for index in range(getattr(spec, split))
        ],
        'categories': [
            {'id': label, 'name': name, 'supercategory': 'texture'}
            for label, name in enumerate(TEXTURE_CLASSES, start=1)
        ],
        'annotations': [{'id': n, **entry} for n, entry in enumerate(annotations, start=1)],
    }
    (out / coco_path(split)).write_text(json.dumps(document, separators=(',', ':')))


def write_classes(out: Path) -> None:
    """Write names and colours of the classes, background first, as JSON."""
    document = {'classes': list(CLASSES), 'palette': [list(colour) for colour in PALETTE]}
    (out / CLASSES_FILE).write_text(json.dumps(document, indent=1) + '\n')
