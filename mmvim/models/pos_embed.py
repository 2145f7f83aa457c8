"""The patch grid of an image, and position embeddings of other grids: pure functions."""

from __future__ import annotations

import math
from typing import Any

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
        (max(pixels - patch, 0) + stride - 1) // stride + 1
        for pixels, patch, stride in zip(size, patch_size, patch_stride)
    )
    return rows, columns


def pad_to_patches(
    image: torch.Tensor, patch_size: tuple[int, int], patch_stride: tuple[int, int]
) -> tuple[torch.Tensor, tuple[int, int]]:
    """Pad an image at the bottom and right to whole strides.

    Args:
        image (torch.Tensor): Shape (B, C, H, W).
        patch_size (tuple[int, int]): Height and width of a patch in pixels.
        patch_stride (tuple[int, int]): Steps between patches in pixels.

    Returns:
        tuple[torch.Tensor, tuple[int, int]]: The padded image and its :func:`patch_grid`.

    Raises:
        ValueError: If the image is smaller than one patch.
    """
    size = (image.shape[2], image.shape[3])
    if size[0] < patch_size[0] or size[1] < patch_size[1]:
        raise ValueError(
            f'the image of {size[0]}x{size[1]} pixels is smaller than one patch of '
            f'{patch_size[0]}x{patch_size[1]}.'
        )
    grid = patch_grid(size, patch_size, patch_stride)
    bottom, right = (
        (n - 1) * stride + patch - pixels
        for n, stride, patch, pixels in zip(grid, patch_stride, patch_size, size)
    )
    # With a stride above the patch size the last pixels of a side may lie in no patch. (Elsewhere
    # no maximum: torch.export would not know the size of the result.)
    bottom = max(bottom, 0) if patch_stride[0] > patch_size[0] else bottom
    right = max(right, 0) if patch_stride[1] > patch_size[1] else right
    # Padding by nothing copies the image. (A graph for any size cannot ask whether it is nothing.)
    if torch.compiler.is_compiling() or bottom or right:
        image = F.pad(image, (0, right, 0, bottom))
    return image, grid


def stored_grid(grid: Any, rows: int) -> tuple[int, int]:
    """The grid that a checkpoint holds beside its position embedding, or else a square one.

    Args:
        grid (Any): Rows and columns (H, W), as they were read; None if there was nothing.
        rows (int): Number of patch rows.

    Raises:
        ValueError: If the grid is none of these rows, or there is none and they are no square.
    """
    if grid is None:
        side = math.isqrt(max(rows, 0))
        if rows < 1 or side * side != rows:
            raise ValueError(
                f'it has {rows} patch rows, which is no square grid, and no pos_embed_grid beside '
                'it tells its shape.'
            )
        return side, side
    try:
        height, width = (int(n) for n in grid)
    except (TypeError, ValueError, RuntimeError):
        height = width = 0
    if min(height, width) < 1 or height * width != rows:
        large = isinstance(grid, torch.Tensor) and grid.numel() > 2
        given = f'a tensor of shape {tuple(grid.shape)}' if large else repr(grid)
        raise ValueError(
            f'the pos_embed_grid of {rows} patch rows must be two ints (H, W) of that product, '
            f'got {given}.'
        )
    return height, width


def fit_pos_embed(
    pos_embed: Any, grid: Any, target: tuple[int, int], mode: str = 'bicubic'
) -> torch.Tensor:
    """The position embedding of a checkpoint, as a model of another grid loads it.

    Args:
        pos_embed (Any): Patch rows (1, h·w, D), as they were read.
        grid (Any): Their grid (h, w), as it was read; None if there was nothing: then the grid of
            the model if the number of rows is its, or a square one.
        target (tuple[int, int]): Grid (H, W) of the model.
        mode (str): See :func:`resize_pos_embed`. Defaults to 'bicubic'.

    Returns:
        torch.Tensor: Shape (1, H·W, D).

    Raises:
        ValueError: If this is no position embedding, or its grid is unknown or wrong.
    """
    is_tensor = isinstance(pos_embed, torch.Tensor) and pos_embed.layout == torch.strided
    if not is_tensor or pos_embed.ndim != 3 or not pos_embed.is_floating_point():
        given = repr(pos_embed)
        if isinstance(pos_embed, torch.Tensor):
            given = f'{pos_embed.dtype}, {pos_embed.layout} of shape {tuple(pos_embed.shape)}'
        raise ValueError(
            f'it must be a dense floating-point tensor (1, rows, embed_dims), got {given}.'
        )
    rows = pos_embed.shape[1]
    if grid is None and rows == math.prod(target):
        return pos_embed
    return resize_pos_embed(pos_embed, stored_grid(grid, rows), target, mode)


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
    # A graph for any size cannot ask for its size; interpolated to the same grid nothing changes.
    if not torch.compiler.is_compiling() and source == target:
        return pos_embed
    image = pos_embed.transpose(1, 2).unflatten(2, source)  # (1, D, h, w)
    image = image.to(torch.promote_types(pos_embed.dtype, torch.float32))
    # F.interpolate takes align_corners for the smooth modes only.
    align_corners = False if mode in ('bilinear', 'bicubic') else None
    image = F.interpolate(image, size=target, mode=mode, align_corners=align_corners)
    return image.flatten(2).transpose(1, 2).to(pos_embed.dtype)
