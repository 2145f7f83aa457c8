"""Procedural textures: the one thing that tells the classes of the patterns dataset apart.

A texture is a function ``(rng, height, width) -> (height, width) float32 in [0, 1]`` which says
how much of an object's second colour a pixel takes. Each draws its own period, phase and tilt.
Lengths are in pixels and do not grow with the image: a texture must fit a few 8-pixel patches.

Orientation is a class only where it survives the horizontal flip of every training pipeline:
both diagonals are one class, and the three bands of stripes lie 22 degrees apart.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

FloatMap = NDArray[np.floating[Any]]
Texture = Callable[[np.random.Generator, int, int], FloatMap]

_MIN_STD = 0.3  # an even mix of 0 and 1 has 0.5
STRIPE_TILT = 11.5  # degrees either side of 0, 45, 90 or 135


def rotated_axes(height: int, width: int, degrees: float) -> tuple[FloatMap, FloatMap]:
    """Pixel coordinates along two perpendicular axes, each (height, width).

    ``degrees`` is the angle of the first, from the direction of the columns towards the rows.
    """
    angle = np.deg2rad(degrees)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    y = np.arange(height, dtype=np.float32)[:, None]
    x = np.arange(width, dtype=np.float32)[None, :]
    return x * cos + y * sin, y * cos - x * sin


def soft_step(distance: FloatMap, width: float) -> FloatMap:
    """A ramp from 0 to 1, ``width`` pixels wide, around the zero of a signed distance in pixels."""
    return np.clip(distance / np.float32(width) + np.float32(0.5), 0, 1)


def _edge(rng: np.random.Generator) -> float:
    """Width of a texture's edges in pixels: from nearly hard to slightly out of focus."""
    return float(rng.uniform(0.8, 2.0))


def _distance_in_cell(axis: FloatMap, period: float, phase: float) -> FloatMap:
    """Distance in pixels from the nearest of the points ``phase + k * period``."""
    return np.abs((axis - phase + period / 2) % period - period / 2)


def _stripes(rng: np.random.Generator, height: int, width: int, degrees: float) -> FloatMap:
    """Stripes that repeat along the direction ``degrees``, equally wide in both colours."""
    period = rng.uniform(6, 14)
    across, _ = rotated_axes(height, width, degrees + rng.uniform(-STRIPE_TILT, STRIPE_TILT))
    distance = period / 4 - _distance_in_cell(across, period, rng.uniform(0, period))
    return soft_step(distance, _edge(rng))


def _diagonal_stripes(rng: np.random.Generator, height: int, width: int) -> FloatMap:
    """Stripes along either diagonal."""
    return _stripes(rng, height, width, 45 if rng.random() < 0.5 else 135)


def checker(rng: np.random.Generator, height: int, width: int) -> FloatMap:
    """A board of squares of alternating colour, upright up to a small tilt."""
    # A patch of 8 pixels must hold more than one, or it shows a stripe.
    cell = rng.uniform(3.2, 5.5)
    u, v = rotated_axes(height, width, rng.uniform(-STRIPE_TILT, STRIPE_TILT))
    edge = _edge(rng)

    def wave(axis: FloatMap) -> FloatMap:
        distance = cell / 2 - _distance_in_cell(axis, 2 * cell, rng.uniform(0, 2 * cell))
        return 2 * soft_step(distance, edge) - 1

    return (wave(u) * wave(v) + 1) / 2


def dots(rng: np.random.Generator, height: int, width: int) -> FloatMap:
    """Round dots on a hexagonal lattice of any tilt."""
    spacing = rng.uniform(7, 12)
    u, v = rotated_axes(height, width, rng.uniform(0, 60))
    u, v = u - rng.uniform(0, spacing), v - rng.uniform(0, spacing)
    row = spacing * math.sqrt(3)
    # A hexagonal lattice is two rectangular ones, the second shifted by half a cell.
    near = [
        np.hypot(
            _distance_in_cell(u, spacing, shift * spacing), _distance_in_cell(v, row, shift * row)
        )
        for shift in (0.0, 0.5)
    ]
    # 0.34 spacings of radius cover 42 % of the plane.
    return soft_step(0.34 * spacing - np.minimum(*near), _edge(rng))


def grid(rng: np.random.Generator, height: int, width: int) -> FloatMap:
    """Thin lines that cross at right angles, upright up to a small tilt."""
    period = rng.uniform(9, 15)
    # Lines of 0.22 periods cover 39 % of the plane.
    half_line = 0.11 * period
    u, v = rotated_axes(height, width, rng.uniform(-STRIPE_TILT, STRIPE_TILT))
    near = np.minimum(
        _distance_in_cell(u, period, rng.uniform(0, period)),
        _distance_in_cell(v, period, rng.uniform(0, period)),
    )
    return soft_step(half_line - near, min(_edge(rng), half_line * 2))


def _smooth_noise(rng: np.random.Generator, height: int, width: int, sigma: float) -> FloatMap:
    """Gaussian noise with a correlation length of ``sigma`` pixels, zero mean and unit variance."""
    white = rng.standard_normal((height, width), dtype=np.float32)
    smooth = np.asarray(cv2.GaussianBlur(white, (0, 0), sigma), np.float32)
    return (smooth - smooth.mean()) / smooth.std()


def blobs(rng: np.random.Generator, height: int, width: int) -> FloatMap:
    """Irregular patches: smooth noise cut at its mean."""
    sigma = rng.uniform(2.2, 3.8)
    # The slope of such noise at a zero crossing is about one per sigma.
    return soft_step(_smooth_noise(rng, height, width, sigma) * np.float32(sigma), _edge(rng))


def noise(rng: np.random.Generator, height: int, width: int) -> FloatMap:
    """Fine grain, finer than any other texture's period."""
    sigma = rng.uniform(0.45, 0.8)
    return soft_step(_smooth_noise(rng, height, width, sigma), _edge(rng))


# In alphabetical order, so that a label map's number, a COCO category id and (less one) the index
# that an ImageFolder reader gives to the sorted folders all agree.
TEXTURES: dict[str, Texture] = {
    'blobs': blobs,
    'checker': checker,
    'dots': dots,
    'grid': grid,
    'noise': noise,
    'stripes_diagonal': _diagonal_stripes,
    'stripes_horizontal': partial(_stripes, degrees=90),
    'stripes_vertical': partial(_stripes, degrees=0),
}
TEXTURE_CLASSES: tuple[str, ...] = tuple(TEXTURES)

BACKGROUND = 0
CLASSES: tuple[str, ...] = ('background', *TEXTURES)
# RGB. Okabe and Ito's colours for colour-blind readers, its black replaced by violet; the
# background stays a dark grey so that objects stand out of an overlay.
PALETTE: tuple[tuple[int, int, int], ...] = (
    (58, 62, 70),
    (0, 158, 115),
    (230, 159, 0),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
    (204, 121, 167),
    (0, 114, 178),
    (148, 103, 230),
)


def render_texture(label: int, rng: np.random.Generator, height: int, width: int) -> FloatMap:
    """A sample of the texture of a class from 1 on: (height, width) float32 in [0, 1]."""
    return TEXTURES[TEXTURE_CLASSES[label - 1]](rng, height, width)


def standardise(texture: FloatMap, mask: NDArray[np.bool_]) -> FloatMap:
    """Give a texture zero mean and unit variance over an object.

    After this the mean colour of what can be seen of an object and its contrast say nothing
    about its class, whatever share of the plane the texture's bright part covers.

    Args:
        texture (FloatMap): (H, W) float32.
        mask (np.ndarray): (H, W) bool, the object's visible pixels.

    Returns:
        FloatMap: (H, W) float32. A sliver of nearly one colour is left paler than unit variance,
        not blown up to it.
    """
    inside = texture[mask]
    return (texture - inside.mean()) / max(float(inside.std()), _MIN_STD)
