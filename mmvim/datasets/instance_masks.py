"""Hundreds of instances in one picture: numbered, or drawn so that the picture stays visible."""

import cv2
import numpy as np
from matplotlib.colors import hsv_to_rgb
from numpy.typing import NDArray

_GOLDEN_RATIO = 0.618  # hues of neighbouring numbers lie far apart


def number_masks(masks: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """A label image: for each pixel the number of the mask that covers it.

    Args:
        masks (NDArray[np.bool_]): (N, H, W); where two overlap, the first one counts.

    Returns:
        NDArray[np.uint16]: (H, W), from 1 to N, 0 where there is none.
    """
    numbers = np.zeros(masks.shape[1:], np.uint16)
    for number in range(len(masks), 0, -1):
        numbers[masks[number - 1]] = number
    return numbers


def draw_outlines(image: NDArray[np.uint8], numbers: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """A picture with a rim of one pixel in every instance, in a colour of its own, and a tint.

    Args:
        image (NDArray[np.uint8]): (H, W, 3), RGB; left as it is.
        numbers (NDArray[np.uint16]): (H, W), of :func:`number_masks`.
    """
    hues = np.arange(int(numbers.max(initial=0)) + 1) * _GOLDEN_RATIO % 1
    colours = hsv_to_rgb(np.stack([hues, np.full_like(hues, 0.7), np.ones_like(hues)], axis=1))
    drawn = (255 * colours[numbers]).astype(np.float32)
    rim = cv2.dilate(numbers, np.ones((3, 3))) != cv2.erode(numbers, np.ones((3, 3)))
    strength = np.where(rim, 1.0, 0.2) * (numbers > 0)
    return (image + strength[..., None] * (drawn - image)).astype(np.uint8)
