"""RoI Align with the call conventions of mmcv's ``_ext``: buffers are filled in place.

In torch, an average over bilinear samples is a weighted sum of pixels, so ``embedding_bag`` serves:
a bin is a bag of pixels, and backward a pixel is a bag of bins. Neither makes a tensor of samples
by channels. The maximum has to: samples are bags there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from mmvim.errors import UserError
from mmvim.mmcv_ops.torchvision_ops import has_torchvision_ops

# Sampling points, and their values, held at once.
MAX_SAMPLES = 2**19
MAX_VALUES = 2**25
MAX_POOLING = 0


class _Samples(NamedTuple):
    """The S sampling points of some RoIs, bin after bin."""

    bins: slice  # of these RoIs among all bins
    counts: Tensor  # (bins,) points of each bin
    y: Tensor  # (S,)
    x: Tensor  # (S,)
    pixels: Tensor  # (S, 4) around each point, (image * height + y) * width + x
    weights: Tensor  # (S, 4) of the pixels, bilinear


def _samples(
    rois: Tensor,
    map_size: Sequence[int],
    size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    most: int,
) -> Iterator[_Samples]:
    """The sampling points of all RoIs, in parts of about ``most`` points."""
    start, end = (rois[:, 1:].unflatten(1, (2, 2)) * spatial_scale - 0.5 * aligned).unbind(1)
    extent = end - start if aligned else (end - start).clamp(min=1)
    bin_size = extent / rois.new_tensor([size[1], size[0]])
    if sampling_ratio > 0:
        grid = torch.full_like(bin_size, sampling_ratio, dtype=torch.long)
    else:
        grid = bin_size.float().ceil().long().clamp(min=0)
    counts = grid.prod(1)
    bins = size[0] * size[1]
    parts = (counts.cumsum(0) * bins // most).unique_consecutive(return_counts=True)[1]
    for part in torch.arange(len(rois), device=rois.device).split(parts.tolist()):
        total = counts[part] * bins
        roi = part.repeat_interleave(total)
        point = torch.arange(len(roi), device=rois.device)
        point = point - (total.cumsum(0) - total).repeat_interleave(total)
        cell, place = point // counts[roi], point % counts[roi]
        width = grid[roi, 0]
        y, x = (
            start[roi, axis]
            + step * bin_size[roi, axis]
            + (inner + 0.5) * bin_size[roi, axis] / grid[roi, axis]
            for axis, step, inner in (
                (1, cell // size[1], place // width),
                (0, cell % size[1], place % width),
            )
        )
        pixels, weights = _corners(y, x, *map_size)
        pixels += rois[roi, :1].long() * (map_size[0] * map_size[1])
        where = slice(int(part[0]) * bins, (int(part[-1]) + 1) * bins)
        yield _Samples(where, counts[part].repeat_interleave(bins), y, x, pixels, weights)


def _corners(y: Tensor, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Pixels, y * width + x, around points and their bilinear weights, each (..., 4).

    Points more than one pixel outside the map weigh nothing, nearer ones count as on its edge.
    """
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    low, high, part = [], [], []
    for values, length in ((y, height), (x, width)):
        values = values.where(inside, 0).clamp(0, length - 1)
        low.append(values.long())
        high.append((low[-1] + 1).clamp(max=length - 1))
        part.append(values - low[-1])
    rows = torch.stack([low[0], low[0], high[0], high[0]], -1)
    columns = torch.stack([low[1], high[1], low[1], high[1]], -1)
    y_weights = torch.stack([1 - part[0], 1 - part[0], part[0], part[0]], -1)
    x_weights = torch.stack([1 - part[1], part[1], 1 - part[1], part[1]], -1)
    return rows * width + columns, y_weights * x_weights * inside[..., None]


def _bags(table: Tensor, rows: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    """Weighted sums (bags, C) of rows of a table (rows, C); ``counts`` entries belong to each."""
    offsets = counts.cumsum(0) - counts
    return embedding_bag(rows, table, offsets, mode='sum', per_sample_weights=weights)


def _torchvision_serves(dtype: torch.dtype, pool_mode: int) -> bool:
    """Not a maximum, nor bfloat16; in float64 it counts the samples of a bin in another way."""
    known = dtype in (torch.float32, torch.float16)
    return known and pool_mode != MAX_POOLING and has_torchvision_ops()


def _check(rois: Tensor, aligned: bool) -> None:
    """Refuse RoIs whose ends lie before their starts where the compiled operator does."""
    if aligned and rois.device.type == 'cpu' and not (rois[:, 3:] >= rois[:, 1:3]).all():
        raise UserError('roi_align: an RoI (image, x1, y1, x2, y2) needs x1 <= x2 and y1 <= y2.')


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Average or maximum of bilinear samples in each bin of each RoI (arXiv 1703.06870).

    Args:
        input (Tensor): (B, C, H, W). Half precision is computed in float32.
        rois (Tensor): (N, 5), index of the image, x1, y1, x2, y2.
        output (Tensor): (N, C, h, w), filled.
        argmax_y (Tensor): The same shape, filled where ``pool_mode`` is 0: y of the sample that is
            the maximum, -1 where there is none.
        argmax_x (Tensor): Likewise for x.
        aligned_height (int): h, bins in a column.
        aligned_width (int): w, bins in a row.
        spatial_scale (float): Pixels of the map for one of the RoIs' coordinates.
        sampling_ratio (int): Samples of a bin along each axis; 0, as many as it has pixels.
        pool_mode (int): 0 for the maximum, 1 for the average.
        aligned (bool): Whether pixel centres lie at half coordinates.

    Raises:
        UserError: On a CPU, if ``aligned`` and an RoI ends before it starts.
    """
    _check(rois, aligned)
    channels = input.shape[1]
    size = (aligned_height, aligned_width)
    # The compiled operator takes it as a C float.
    scale = torch.tensor(spatial_scale, dtype=torch.float32).item()
    if _torchvision_serves(input.dtype, pool_mode):
        output.copy_(
            torch.ops.torchvision.roi_align(input, rois, scale, *size, sampling_ratio, aligned)
        )
        return
    dtype = torch.promote_types(input.dtype, torch.float32)
    table = input.to(dtype).permute(0, 2, 3, 1).reshape(-1, channels)
    flat = table.new_empty(len(rois) * size[0] * size[1], channels)
    where = [torch.empty_like(flat), torch.empty_like(flat)] if pool_mode == MAX_POOLING else []
    most = MAX_VALUES // channels if pool_mode == MAX_POOLING else MAX_SAMPLES
    for bins, counts, y, x, pixels, weights in _samples(
        rois.to(dtype), input.shape[2:], size, scale, sampling_ratio, aligned, most
    ):
        if pool_mode == MAX_POOLING:
            values = embedding_bag(pixels, table, mode='sum', per_sample_weights=weights)
            flat[bins], best = _maximum(values, counts)
            for buffer, places in zip(where, (y, x)):
                buffer[bins] = torch.cat([places, places.new_tensor([-1])])[best]
        else:
            weights = weights / counts.repeat_interleave(counts)[:, None]
            flat[bins] = _bags(table, pixels.flatten(), weights.flatten(), 4 * counts)
    for buffer, result in zip((output, argmax_y, argmax_x), (flat, *where)):
        buffer.copy_(result.unflatten(0, (-1, *size)).permute(0, 3, 1, 2))


def _maximum(values: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Maxima (bins, C) of samples (S, C), ``counts`` of them in each bin, and their indices.

    As in the compiled operators a maximum is above a floor; S is the index where none is.
    """
    floor = -1e4 if values.device.type == 'cpu' else torch.finfo(torch.float32).min
    bins = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    bins = bins[:, None].expand_as(values)
    maximum = values.new_full((len(counts), values.shape[1]), floor)
    maximum = maximum.scatter_reduce(0, bins, values, 'amax')
    none = len(values)
    here = (values == maximum.gather(0, bins)) & (values > floor)
    best = torch.arange(none, device=counts.device)[:, None].where(here, none)
    return maximum, torch.full_like(maximum, none, dtype=torch.long).scatter_reduce(
        0, bins, best, 'amin'
    )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of :func:`roi_align_forward` by its map, added to ``grad_input`` (B, C, H, W)."""
    _check(rois, aligned)
    _, channels, height, width = grad_input.shape
    size = (aligned_height, aligned_width)
    scale = torch.tensor(spatial_scale, dtype=torch.float32).item()
    if _torchvision_serves(grad_input.dtype, pool_mode):
        grad_input += torch.ops.torchvision._roi_align_backward(
            grad_output, rois, scale, *size, *grad_input.shape, sampling_ratio, aligned
        )
        return
    dtype = torch.promote_types(grad_output.dtype, torch.float32)
    grad = grad_output.to(dtype)
    if pool_mode == MAX_POOLING:
        pixels, weights = _corners(argmax_y.to(dtype), argmax_x.to(dtype), height, width)
        weights = weights * (argmax_y != -1)[..., None]
        plane = rois[:, :1].long() * channels + torch.arange(channels, device=rois.device)
        pixels += plane[:, :, None, None, None] * (height * width)
        total = torch.zeros_like(grad_input, dtype=dtype).view(-1)
        total.index_add_(0, pixels.flatten(), (weights * grad[..., None]).flatten())
        grad_input += total.view_as(grad_input)
        return
    table = grad.permute(0, 2, 3, 1).reshape(-1, channels)
    total = table.new_zeros(len(grad_input) * height * width, channels)
    for bins, counts, _, _, pixels, weights in _samples(
        rois.to(dtype), (height, width), size, scale, sampling_ratio, aligned, MAX_SAMPLES
    ):
        weights = weights / counts.repeat_interleave(counts)[:, None]
        each = torch.arange(bins.start, bins.stop, device=rois.device)
        each = each.repeat_interleave(4 * counts)
        pixels, order = pixels.flatten().sort()
        entries = torch.bincount(pixels, minlength=len(total))
        total += _bags(table, each[order], weights.flatten()[order], entries)
    grad_input += total.unflatten(0, (-1, height, width)).permute(0, 3, 1, 2)
