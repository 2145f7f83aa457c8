"""Random outlines of objects, drawn without any knowledge of the object's class.

An outline is a function ``(rng, radius) -> polygons``: closed, (n, 2), around the origin, in
pixels. The first is the object, the others are cut out of it.
"""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from mmvim.datasets.patterns.textures import FloatMap

Polygon = NDArray[np.float64]
Outline = Callable[[np.random.Generator, float], list[Polygon]]

_SUBPIXEL_BITS = 4


def _polar(radii: NDArray[np.float64], turn: float = 0.0) -> Polygon:
    """(n, 2) polygon through points at equal angles and the given distances from the origin."""
    angles = turn + np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _turned(polygon: Polygon, turn: float) -> Polygon:
    """A polygon turned around the origin by an angle in radians."""
    cos, sin = np.cos(turn), np.sin(turn)
    return polygon @ np.array([[cos, sin], [-sin, cos]])


def _turn(rng: np.random.Generator) -> float:
    return float(rng.uniform(0, 2 * np.pi))


def _circle(radius: float) -> Polygon:
    return _polar(np.full(64, radius))


def disc(rng: np.random.Generator, radius: float) -> list[Polygon]:
    """A circle, a little smaller than the others so that areas stay alike."""
    return [_circle(0.9 * radius)]


def ellipse(rng: np.random.Generator, radius: float) -> list[Polygon]:
    """An ellipse of any direction."""
    axes = np.array([1.0, rng.uniform(0.55, 0.8)])
    return [_turned(_circle(1.1 * radius) * axes, _turn(rng))]


def polygon(rng: np.random.Generator, radius: float) -> list[Polygon]:
    """A triangle, quadrangle, pentagon or hexagon with uneven corners."""
    corners = int(rng.integers(3, 7))
    radii = (1.3 if corners == 3 else 1.1) * radius * rng.uniform(0.85, 1.1, corners)
    return [_polar(radii, _turn(rng))]


def star(rng: np.random.Generator, radius: float) -> list[Polygon]:
    """A star of five to seven points."""
    points = int(rng.integers(5, 8))
    radii = np.tile([1.25, 1.25 * rng.uniform(0.5, 0.65)], points) * radius
    return [_polar(radii, _turn(rng))]


def ring(rng: np.random.Generator, radius: float) -> list[Polygon]:
    """A disc with a round hole."""
    return [_circle(1.1 * radius), _circle(radius * rng.uniform(0.3, 0.48))]


def crescent(rng: np.random.Generator, radius: float) -> list[Polygon]:
    """A disc bitten by another disc."""
    bite = _circle(radius * rng.uniform(0.7, 0.9))
    bite[:, 0] += radius * rng.uniform(0.8, 1.0)
    return [_circle(1.15 * radius), _turned(bite, _turn(rng))]


def blob(rng: np.random.Generator, radius: float) -> list[Polygon]:
    """A closed curve with three random harmonics."""
    angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    radii = np.ones_like(angles)
    for harmonic in (2, 3, 4):
        radii += rng.uniform(0.05, 0.16) * np.cos(harmonic * angles + _turn(rng))
    return [_polar(radii * radius)]


OUTLINES: dict[str, Outline] = {
    outline.__name__: outline for outline in (disc, ellipse, polygon, star, ring, crescent, blob)
}


def draw_outline(
    name: str, rng: np.random.Generator, size: int, centre: tuple[float, float], radius: float
) -> FloatMap:
    """Paint one outline with smooth edges.

    Args:
        name (str): Key of ``OUTLINES``.
        rng (np.random.Generator): Proportions and direction.
        size (int): Side of the square canvas, in pixels.
        centre (tuple[float, float]): x and y, in pixels; parts outside the canvas are cut off.
        radius (float): Rough radius, in pixels.

    Returns:
        FloatMap: (size, size) float32 coverage in [0, 1]; a pixel belongs to the object from 0.5
        on.
    """
    canvas = np.zeros((size, size), np.uint8)
    for number, points in enumerate(OUTLINES[name](rng, radius)):
        fixed = np.rint((points + centre) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
        cv2.fillPoly(canvas, [fixed], 0 if number else 255, cv2.LINE_AA, _SUBPIXEL_BITS)
    return canvas.astype(np.float32) / np.float32(255)
