"""Patterns: a small synthetic dataset whose classes are textures, never colours or outlines.

``textures``, ``outlines`` and ``scenes`` are pure functions of a random generator;
``layouts`` turns scenes into the ADE20K, COCO and ImageFolder folder layouts;
``generation`` writes a whole dataset; ``preview`` draws it; ``pixel_baseline`` measures how far a
classifier gets that looks at single pixels and their nearest neighbours, ``image_baseline`` how far
a linear one of whole pictures.
"""

from mmvim.datasets.patterns.classes import BACKGROUND, CLASSES, PALETTE, TEXTURE_CLASSES
from mmvim.datasets.patterns.generation import generate
from mmvim.datasets.patterns.layouts import LAYOUTS, SPLITS, PatternsError, PatternsSpec
from mmvim.datasets.patterns.scenes import Scene, make_scene

__all__ = [
    'BACKGROUND',
    'CLASSES',
    'LAYOUTS',
    'PALETTE',
    'SPLITS',
    'TEXTURE_CLASSES',
    'PatternsError',
    'PatternsSpec',
    'Scene',
    'generate',
    'make_scene',
]
