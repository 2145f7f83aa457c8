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
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mmvim.datasets.patterns.classes import CLASSES, PALETTE, TEXTURE_CLASSES
from mmvim.datasets.patterns.scenes import Scene, make_scene
from mmvim.errors import UsageError

Split = Literal['train', 'val']
SPLITS: tuple[Split, ...] = get_args(Split)
LAYOUTS: tuple[str, ...] = ('ade', 'coco', 'imagefolder')
SIZES = (64, 2048)
# Raised whenever the same request would give other pictures than before.
VERSION = 1

CLASSES_FILE = 'classes.json'
PREVIEW_FILE = 'preview.png'

ADE_FOLDERS = {'train': 'training', 'val': 'validation'}
# Part of every item's seed: scenes and single objects are different draws.
_SCENE, _SINGLE = 0, 1


@dataclass(frozen=True)
class PatternsSpec:
    """Specification of a patterns dataset; equal specs give equal files.

    Attributes:
        train (int): Number of training images (scenes, and as many single objects).
        val (int): Number of validation images.
        size (int): Side of an image, in pixels.
        seed (int): Seed of all chance, not negative.
        layouts (tuple[str, ...]): Subset of ``LAYOUTS``, kept in their order.
        version (int): Version of the generator; files of another one are not taken for these.

    Raises:
        UsageError: If a value is out of range.
    """

    train: int = 2000
    val: int = 200
    size: int = 128
    seed: int = 0
    layouts: tuple[str, ...] = LAYOUTS
    version: int = VERSION

    def __post_init__(self) -> None:
        for split in SPLITS:
            if self.count(split) < 1:
                raise UsageError(
                    f'--{split} is {self.count(split)}: every split needs at least 1 image'
                )
        if not SIZES[0] <= self.size <= SIZES[1]:
            raise UsageError(
                f'--size is {self.size}: images are {SIZES[0]} to {SIZES[1]} pixels wide, since '
                'textures repeat every 5 to 14 pixels whatever the size'
            )
        if self.seed < 0:
            raise UsageError(f'--seed is {self.seed}: seeds are not negative')
        unknown = sorted(set(self.layouts) - set(LAYOUTS))
        if unknown or not self.layouts:
            raise UsageError(
                f'--layouts is {" ".join(unknown) or "empty"}: choose from {" ".join(LAYOUTS)}'
            )
        ordered = tuple(name for name in LAYOUTS if name in self.layouts)
        object.__setattr__(self, 'layouts', ordered)

    def __str__(self) -> str:
        """One line for people."""
        version = '' if self.version == VERSION else f', of version {self.version}'
        counts = f'{self.train} + {self.val} images of {self.size} pixels, seed {self.seed}'
        return f'{counts}, {" ".join(self.layouts)}{version}'

    def count(self, split: Split) -> int:
        """Number of images of a split."""
        return self.train if split == 'train' else self.val

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON types."""
        return {**asdict(self), 'layouts': list(self.layouts)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> 'PatternsSpec':
        """The spec that ``to_json`` wrote; TypeError, KeyError or UsageError for anything else."""
        return cls(**{**data, 'layouts': tuple(data['layouts'])})


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
    kinds = [False] * bool({'ade', 'coco'} & {*spec.layouts}) + [True] * (
        'imagefolder' in spec.layouts
    )
    return [
        Item(single, split, index)
        for single in kinds
        for split in SPLITS
        for index in range(spec.count(split))
    ]


def item_paths(spec: PatternsSpec, item: Item) -> dict[str, Path]:
    """The files of an item below the dataset's folder, by what they hold.

    Returns:
        dict[str, Path]: Of the keys 'ade', 'ade_labels', 'coco' and 'imagefolder' those that apply.
    """
    if item.single:
        folder = Path('imagefolder', item.split, TEXTURE_CLASSES[item.label - 1])
        return {'imagefolder': folder / item.file_name}
    paths = {}
    if 'ade' in spec.layouts:
        for name, kind in (('ade', 'images'), ('ade_labels', 'annotations')):
            paths[name] = Path('ade', kind, ADE_FOLDERS[item.split], item.file_name)
    if 'coco' in spec.layouts:
        paths['coco'] = Path('coco', item.split, item.file_name)
    return paths


def coco_path(split: Split) -> Path:
    """The annotation file of a split, below the dataset's folder."""
    return Path('coco', 'annotations', f'instances_{split}.json')


def folders(spec: PatternsSpec) -> list[Path]:
    """Every folder that holds files of a dataset, below the dataset's folder."""
    every = {
        'ade': [
            f'{kind}/{name}' for kind in ('images', 'annotations') for name in ADE_FOLDERS.values()
        ],
        'coco': [*SPLITS, 'annotations'],
        # All classes even where a tiny split has none: readers number the folders they see.
        'imagefolder': [f'{split}/{name}' for split in SPLITS for name in TEXTURE_CLASSES],
    }
    return [Path(layout, name) for layout in spec.layouts for name in every[layout]]


def files(spec: PatternsSpec) -> Iterator[Path]:
    """Every file of a dataset but its manifest, below the dataset's folder."""
    yield Path(CLASSES_FILE)
    yield Path(PREVIEW_FILE)
    if 'coco' in spec.layouts:
        yield from map(coco_path, SPLITS)
    for item in items(spec):
        yield from item_paths(spec, item).values()


def make_item(spec: PatternsSpec, item: Item) -> Scene:
    """Draw the scene of an item."""
    key = (spec.seed, _SINGLE if item.single else _SCENE, SPLITS.index(item.split), item.index)
    rng = np.random.default_rng(key)
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
        list: The COCO annotations of the item's objects, without ``id``; empty where the COCO
        layout has no part in the item.
    """
    scene = make_item(spec, item)
    paths = item_paths(spec, item)
    images = [out / paths[name] for name in LAYOUTS if name in paths]
    write_png(images[0], scene.image)
    for copy in images[1:]:
        _link_or_copy(images[0], copy)
    if 'ade_labels' in paths:
        write_png(out / paths['ade_labels'], scene.labels)
    if 'coco' not in paths:
        return []
    return [coco_annotation(thing.mask, thing.label, item.index) for thing in scene.objects]


def _link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has no hard links."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        shutil.copyfile(source, target)


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
            for index in range(spec.count(split))
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
