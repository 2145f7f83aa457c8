"""Scenes of overlapping textured objects on a shaded, noisy background.

A scene is a pure function of a random generator. Class, colours and outline of an object are
separate draws: none depends on another. A layout in which an object is hardly visible is drawn
again by its geometry alone, which cannot tie geometry to class either.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mmvim.datasets.patterns.outlines import OUTLINES, draw_outline
from mmvim.datasets.patterns.textures import (
    BACKGROUND,
    TEXTURE_CLASSES,
    FloatMap,
    render_texture,
    standardise,
)

# Shares of the image side (radius) or of its area (visible pixels).
RADIUS = (0.16, 0.31)
MIN_VISIBLE_AREA = 0.025
MIN_VISIBLE_SHARE = 0.4
OBJECTS = (2, 4)

_COLOUR_RANGE = (35.0, 220.0)
_MIN_COLOUR_DISTANCE = 95.0
_ATTEMPTS = 200


class SceneObject(NamedTuple):
    """One object of a scene.

    Attributes:
        label (int): Class, 1 to ``len(TEXTURE_CLASSES)``.
        outline (str): Key of ``OUTLINES``.
        mask (np.ndarray): (S, S) bool, the pixels of the object that no later object covers.
    """

    label: int
    outline: str
    mask: NDArray[np.bool_]


class Scene(NamedTuple):
    """A picture and what is in it.

    Attributes:
        image (np.ndarray): (S, S, 3) uint8, RGB.
        labels (np.ndarray): (S, S) uint8, 0 for background, else the class of the topmost object.
        objects (list[SceneObject]): From the lowest to the topmost.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    objects: list[SceneObject]


class _Shape(NamedTuple):
    """Geometry of an object: name and (S, S) float32 coverage in [0, 1] of its outline."""

    outline: str
    coverage: FloatMap


def _draw_colours(rng: np.random.Generator) -> tuple[FloatMap, FloatMap]:
    """Mean colour and half the difference of two random colours, each (3,).

    Objects of every class and the background draw from here.
    """
    while True:
        first, second = rng.uniform(*_COLOUR_RANGE, (2, 3)).astype(np.float32)
        if np.linalg.norm(first - second) >= _MIN_COLOUR_DISTANCE:
            return (first + second) / 2, (second - first) / 2


def _smooth_field(rng: np.random.Generator, size: int) -> FloatMap:
    """(size, size) map within [-1, 1] of a slope in a random direction and wide random hills."""
    angle = rng.uniform(0, 2 * np.pi)
    axis = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    slope = np.float32(np.cos(angle)) * axis[None, :] + np.float32(np.sin(angle)) * axis[:, None]
    coarse = rng.uniform(-0.5, 0.5, (5, 5)).astype(np.float32)
    hills = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    field = slope + np.float32(rng.uniform(0.3, 1.0)) * hills
    return field / np.abs(field).max()


def _draw_shape(rng: np.random.Generator, size: int) -> _Shape:
    name = str(rng.choice(tuple(OUTLINES)))
    x, y = rng.uniform(0.14, 0.86, 2) * size
    return _Shape(name, draw_outline(name, rng, size, (x, y), rng.uniform(*RADIUS) * size))


def _visible_masks(shapes: list[_Shape]) -> list[NDArray[np.bool_]] | None:
    """(S, S) visible part of each shape under those drawn after it; None if one has too little."""
    masks: list[NDArray[np.bool_]] = []
    covered = np.zeros(shapes[0].coverage.shape, np.bool_)
    for shape in reversed(shapes):
        whole = shape.coverage >= 0.5
        masks.append(whole & ~covered)
        least = max(MIN_VISIBLE_AREA * whole.size, MIN_VISIBLE_SHARE * whole.sum())
        if masks[-1].sum() < least:
            return None
        covered |= whole
    return masks[::-1]


def _draw_shapes(
    rng: np.random.Generator, size: int, count: int
) -> tuple[list[_Shape], list[NDArray[np.bool_]]]:
    """Draw shapes one on another; one that hides another is drawn again.

    Returns:
        tuple: The shapes, and the visible mask of each.

    Raises:
        RuntimeError: If no arrangement was found, which the constants above rule out in practice.
    """
    for _ in range(_ATTEMPTS):
        shapes: list[_Shape] = []
        for _ in range(_ATTEMPTS):
            candidate = [*shapes, _draw_shape(rng, size)]
            masks = _visible_masks(candidate)
            if masks is not None:
                shapes = candidate
                if len(shapes) == count:
                    return shapes, masks
    raise RuntimeError(f'no arrangement of {count} visible objects on {size}x{size} pixels found')


def _paint(label: int, rng: np.random.Generator, mask: NDArray[np.bool_]) -> FloatMap:
    """Colours (S, S, 3), 0 to 255, of an object of a class.

    ``mask``, (S, S) bool, are its visible pixels; it is over them that the drawn colours hold.
    """
    mean, contrast = _draw_colours(rng)
    texture = standardise(render_texture(label, rng, *mask.shape), mask)
    return mean + contrast * texture[..., None]


def _to_image(colours: FloatMap) -> NDArray[np.uint8]:
    return np.clip(np.rint(colours), 0, 255).astype(np.uint8)


def draw_patch(label: int, rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """A square of a class from 1 on, evenly lit, without noise: (size, size, 3) uint8, RGB."""
    return _to_image(_paint(label, rng, np.ones((size, size), np.bool_)))


def make_scene(rng: np.random.Generator, size: int, labels: tuple[int, ...] = ()) -> Scene:
    """Draw one scene.

    Args:
        rng (np.random.Generator): The only source of chance: an equal state gives an equal scene.
        size (int): Side of the square image, in pixels.
        labels (tuple[int, ...]): Classes of the objects, from the lowest to the topmost. Empty, the
            default: 2 to 4 objects of random classes.
    """
    if not labels:
        count = int(rng.integers(OBJECTS[0], OBJECTS[1] + 1))
        labels = tuple(int(k) for k in rng.integers(1, len(TEXTURE_CLASSES) + 1, count))
    shapes, masks = _draw_shapes(rng, size, len(labels))

    mean, contrast = _draw_colours(rng)
    image = mean + contrast * _smooth_field(rng, size)[..., None]
    label_map = np.full((size, size), BACKGROUND, np.uint8)
    objects = []
    for label, shape, mask in zip(labels, shapes, masks, strict=True):
        inside = shape.coverage[..., None]
        image = image * (1 - inside) + _paint(label, rng, mask) * inside
        label_map[mask] = label
        objects.append(SceneObject(label, shape.outline, mask))

    # One light and one sensor for the whole scene: objects are shaded and noisy as well.
    image = image * (1 + np.float32(rng.uniform(0.05, 0.25)) * _smooth_field(rng, size)[..., None])
    grain = np.float32(rng.uniform(4, 12))
    image = image + grain * rng.standard_normal(image.shape, dtype=np.float32)
    return Scene(_to_image(image), label_map, objects)
