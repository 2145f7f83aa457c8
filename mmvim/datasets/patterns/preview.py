"""One picture that shows what a patterns dataset looks like."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mmvim.datasets.patterns.classes import BACKGROUND, CLASSES, PALETTE, TEXTURE_CLASSES
from mmvim.datasets.patterns.layouts import PREVIEW_FILE, Item, PatternsSpec, make_item
from mmvim.datasets.patterns.scenes import Scene, draw_patch

Picture = NDArray[np.uint8]

_PAPER, _INK, _FAINT = (250, 250, 248), (34, 36, 40), (120, 124, 132)
_MARGIN, _GAP = 36, 20
_CELL = 220  # side of a shown scene
_COLUMNS, _ROWS = 3, 2  # of pairs of image and labels
_PATCH_ROWS = 3
_TEXTURE_PIXELS = 56  # of a texture, in a patch


def overlay(scene: Scene) -> Picture:
    """Labels over a faded image (S, S, 3), each visible object with a white rim."""
    grey = cv2.cvtColor(scene.image, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
    colours = np.array(PALETTE, np.float32)[scene.labels]
    strength = np.where(scene.labels == BACKGROUND, 0.8, 0.72)[..., None]
    picture = (colours * strength + grey * (1 - strength)).astype(np.uint8)
    for thing in scene.objects:
        contours, _ = cv2.findContours(
            thing.mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
        )
        cv2.drawContours(picture, contours, -1, (255, 255, 255), 1)
    return picture


def _resized(picture: Picture, side: int, method: int = cv2.INTER_CUBIC) -> Image.Image:
    return Image.fromarray(cv2.resize(picture, (side, side), interpolation=method))


def draw_preview(spec: PatternsSpec) -> Picture:
    """Scenes beside their labels, and samples of every texture with its name: (H, W, 3), RGB."""
    pair = 2 * _CELL + 4
    width = 2 * _MARGIN + _COLUMNS * pair + (_COLUMNS - 1) * _GAP
    patch_gap = 12
    patch = (width - 2 * _MARGIN + patch_gap) // len(TEXTURE_CLASSES) - patch_gap
    scenes_top = _MARGIN + 76
    textures_top = scenes_top + _ROWS * (_CELL + _GAP) + 12
    height = textures_top + 66 + _PATCH_ROWS * (patch + patch_gap) + _MARGIN - patch_gap

    sheet = Image.new('RGB', (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    title, text, small = (ImageFont.load_default(size) for size in (30, 17, 15))
    pen.text((_MARGIN, _MARGIN - 8), 'Patterns', _INK, title)
    pen.text(
        (_MARGIN, _MARGIN + 36),
        'The texture is the class; colours and outlines are drawn without regard to it. '
        f'{spec.train:,} + {spec.val:,} images of {spec.size} x {spec.size} pixels, '
        f'seed {spec.seed}.',
        _FAINT,
        text,
    )
    for number in range(min(_COLUMNS * _ROWS, spec.train)):
        scene = make_item(spec, Item(False, 'train', number))
        left = _MARGIN + number % _COLUMNS * (pair + _GAP)
        top = scenes_top + number // _COLUMNS * (_CELL + _GAP)
        sheet.paste(_resized(scene.image, _CELL), (left, top))
        sheet.paste(_resized(overlay(scene), _CELL), (left + _CELL + 4, top))

    pen.text((_MARGIN, textures_top), 'Three samples of every class', _INK, text)
    rng = np.random.default_rng(spec.seed)
    for label, name in enumerate(CLASSES):
        if label == BACKGROUND:
            continue
        left = _MARGIN + (label - 1) * (patch + patch_gap)
        top = textures_top + 36
        pen.rounded_rectangle((left, top + 1, left + 15, top + 16), 3, PALETTE[label])
        pen.text((left + 22, top - 1), name.replace('_', ' '), _INK, small)
        for row in range(_PATCH_ROWS):
            sample = draw_patch(label, rng, _TEXTURE_PIXELS)
            place = (left, top + 26 + row * (patch + patch_gap))
            sheet.paste(_resized(sample, patch), place)
    return np.asarray(sheet)


def write_preview(out: Path, spec: PatternsSpec) -> None:
    """Write the sheet of a dataset into its folder."""
    Image.fromarray(draw_preview(spec)).save(out / PREVIEW_FILE)
