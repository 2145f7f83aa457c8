"""The picture inside a packed sample."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmvim.datasets.pipelines import type_name


def to_rgb(packed: np.ndarray, pipeline: Sequence[Any]) -> np.ndarray:
    """A packed input as a picture.

    OpenMMLab's loaders give BGR, and normalisation is the data preprocessor's work, so what a
    pipeline packs is mostly uint8 BGR; a ``Normalize`` in the pipeline is undone here.

    Args:
        packed: (3, H, W) or (1, H, W), any dtype.
        pipeline: The transforms that made it, as config.

    Returns:
        (H, W, 3), uint8, RGB.
    """
    image = packed.transpose(1, 2, 0).astype(np.float32)
    rgb = False
    for step in pipeline:
        if type_name(step) == 'Normalize':
            image = image * np.asarray(step['std'], np.float32) + np.asarray(
                step['mean'], np.float32
            )
            rgb = step.get('to_rgb', True)  # mmcv's default
    image = image.round().clip(0, 255).astype(np.uint8)
    if image.shape[2] == 1:
        return np.repeat(image, 3, axis=2)
    return image if rgb else np.ascontiguousarray(image[..., ::-1])
