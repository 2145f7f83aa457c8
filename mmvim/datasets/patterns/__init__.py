"""Patterns: a small synthetic dataset whose classes are textures, never colours or outlines.

``textures``, ``outlines`` and ``scenes`` are pure functions of a random generator;
``layouts`` turns scenes into the ADE20K, COCO and ImageFolder folder layouts;
``generation`` writes a whole dataset; ``preview`` draws it; ``linear_baselines`` measures how far
linear classifiers get, of single pixels and their nearest neighbours and of whole pictures.
"""

from mmvim.datasets.patterns.generation import generate
from mmvim.datasets.patterns.layouts import LAYOUTS, PatternsSpec
from mmvim.datasets.patterns.scenes import make_scene
from mmvim.datasets.patterns.textures import CLASSES, PALETTE, TEXTURE_CLASSES

__all__ = [
    'CLASSES',
    'LAYOUTS',
    'PALETTE',
    'TEXTURE_CLASSES',
    'PatternsSpec',
    'generate',
    'make_scene',
]
