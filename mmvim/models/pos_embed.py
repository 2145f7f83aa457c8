"""The patch grid of an image and the position embedding resized to it: pure functions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def patch_grid(
    size: tuple[int, int], patch_size: tuple[int, int], patch_stride: tuple[int, int]
) -> tuple[int, int]:
    """Rows and columns of patches that cover an image padded to whole strides.

    Args:
        size (tuple[int, int]): Height and width of the image in pixels.
        patch_size (tuple[int, int]): Height and width of a patch in pixels.
        patch_stride (tuple[int, int]): Steps between patches in pixels.

    Returns:
        tuple[int, int]: ``ceil(max(size - patch, 0) / stride) + 1`` per axis.
    """
    rows, columns = (
        -(-max(pixels - patch, 0) // stride) + 1
        for pixels, patch, stride in zip(size, patch_size, patch_stride)
    )
    return rows, columns


def square_grid(rows: int) -> tuple[int, int]:
    """The square grid of a position embedding that comes without its grid.

    Args:
        rows (int): Number of patch rows.

    Raises:
        ValueError: If ``rows`` is no square of a positive number.
    """
    side = math.isqrt(max(rows, 0))
    if rows < 1 or side * side != rows:
        raise ValueError(
            f'the position embedding has {rows} patch rows, which is no square grid, and no '
            'pos_embed_grid beside it tells its shape.'
        )
    return side, side


def resize_pos_embed(
    pos_embed: torch.Tensor,
    source: tuple[int, int],
    target: tuple[int, int],
    mode: str = 'bicubic',
) -> torch.Tensor:
    """Interpolate the position embedding of a patch grid to another grid.

    The interpolation runs in at least float32, with half-pixel centres (``align_corners=False``)
    and without anti-aliasing, as published for Vim.

    Args:
        pos_embed (torch.Tensor): Patch rows alone, no class token, of shape (1, h·w, D).
        source (tuple[int, int]): The grid (h, w) that ``pos_embed`` was made for.
        target (tuple[int, int]): The wanted grid (H, W).
        mode (str): An interpolation mode of :func:`torch.nn.functional.interpolate` for images.
            Defaults to 'bicubic'.

    Returns:
        torch.Tensor: Shape (1, H·W, D), dtype of ``pos_embed``.

    Raises:
        ValueError: If the number of rows does not fit ``source``.
    """
    if pos_embed.ndim != 3 or pos_embed.shape[1] != source[0] * source[1]:
        raise ValueError(
            f'pos_embed of shape {tuple(pos_embed.shape)} does not belong to a grid of '
            f'{source[0]}x{source[1]}: expected (1, {source[0] * source[1]}, embed_dims).'
        )
    if source == target:
        return pos_embed
    image = pos_embed.transpose(1, 2).unflatten(2, source)  # (1, D, h, w)
    image = image.to(torch.promote_types(pos_embed.dtype, torch.float32))
    # F.interpolate takes align_corners for the smooth modes only.
    align_corners = False if mode in ('bilinear', 'bicubic') else None
    image = F.interpolate(image, size=target, mode=mode, align_corners=align_corners)
    return image.flatten(2).transpose(1, 2).to(pos_embed.dtype)
