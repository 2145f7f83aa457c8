"""One picture that shows what a patterns dataset looks like."""

from pathlib import Path

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mmvim.datasets.patterns.layouts import PREVIEW_FILE, Item, PatternsSpec, make_item
from mmvim.datasets.patterns.scenes import Scene, draw_patch
from mmvim.datasets.patterns.textures import BACKGROUND, PALETTE, TEXTURE_CLASSES

_COLUMNS, _ROWS = 3, 2  # of pairs of image and labels
_PATCH_ROWS = 3
_TEXTURE_PIXELS = 56  # of a texture, in a patch


def overlay(scene: Scene) -> NDArray[np.uint8]:
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


def write_preview(out: Path, spec: PatternsSpec) -> None:
    """Draw scenes beside their labels, and samples of every texture with its name."""
    figure = Figure(figsize=(14.4, 11), layout='constrained')
    FigureCanvasAgg(figure)
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=(10, 11)).flat
    upper.suptitle(
        f'Patterns: {spec.train:,} + {spec.val:,} images of {spec.size} x {spec.size} pixels, '
        f'seed {spec.seed}. The texture is the class; colours and outlines are drawn without '
        'regard to it.'
    )
    axes = upper.subplots(_ROWS, 2 * _COLUMNS)
    for number, pair in enumerate(axes.reshape(-1, 2)[: spec.train]):
        scene = make_item(spec, Item(False, 'train', number))
        pair[0].imshow(scene.image)
        pair[1].imshow(overlay(scene))
    rng = np.random.default_rng(spec.seed)
    patches = lower.subplots(_PATCH_ROWS, len(TEXTURE_CLASSES))
    for label, (name, column) in enumerate(zip(TEXTURE_CLASSES, patches.T), start=1):
        column[0].set_title(name.replace('_', ' '), fontsize=10)
        for axis in column:
            axis.imshow(draw_patch(label, rng, _TEXTURE_PIXELS))
            # Framed in the colour that its labels have above.
            axis.spines[:].set(color=np.array(PALETTE[label]) / 255, linewidth=4)
    for axis in figure.axes:
        axis.set(xticks=[], yticks=[])
    figure.savefig(out / PREVIEW_FILE, dpi=100)
