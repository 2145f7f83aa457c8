"""Patterns: a small synthetic dataset whose classes are textures, never colours or outlines.

``textures``, ``outlines`` and ``scenes`` are pure functions of a random generator;
``layouts`` turns scenes into the ADE20K, COCO and ImageFolder folder layouts;
``generation`` writes a whole dataset; ``preview`` draws it; ``linear_baselines`` measures how far
linear classifiers get, of single pixels and their nearest neighbours and of whole pictures.
"""

from mmvim.datasets.patterns.classes import BACKGROUND, CLASSES, PALETTE, TEXTURE_CLASSES
from mmvim.datasets.patterns.generation import generate
from mmvim.datasets.patterns.layouts import LAYOUTS, SPLITS, PatternsSpec
from mmvim.datasets.patterns.scenes import Scene, make_scene

__all__ = [
    'BACKGROUND',
    'CLASSES',
    'LAYOUTS',
    'PALETTE',
    'SPLITS',
    'TEXTURE_CLASSES',
    'PatternsSpec',
    'Scene',
    'generate',
    'make_scene',
]
