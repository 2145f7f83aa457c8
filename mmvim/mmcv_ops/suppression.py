"""Non-maximum suppression with the call conventions of mmcv's ``_ext``."""

from __future__ import annotations

import torch
from torch import Tensor

from mmvim.mmcv_ops.torchvision_ops import has_torchvision_ops

# Boxes compared with all others at once; a matrix of BLOCK x N overlaps is held.
BLOCK = 256


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes that no better kept box overlaps by more than the threshold.

    Args:
        boxes (Tensor): (N, 4), x1, y1, x2, y2. Half precision is compared in float32.
        scores (Tensor): (N,).
        iou_threshold (float): Intersection over union above which the lower score goes.
        offset (int): 0 or 1, added to widths and heights.

    Returns:
        Tensor: (K,) int64, by falling score.
    """
    # Not a stable sort: equal scores come in the order of the compiled operator, which does this.
    order = scores.sort(0, descending=True).indices
    boxes = boxes[order].to(torch.promote_types(boxes.dtype, torch.float32))
    # The compiled operator takes it as a C float.
    threshold = torch.tensor(iou_threshold, dtype=torch.float32).item()
    if offset or not has_torchvision_ops():
        return order[_greedy(boxes, threshold, offset)]
    ranks = torch.arange(len(boxes), 0, -1, dtype=boxes.dtype, device=boxes.device)
    return order[torch.ops.torchvision.nms(boxes, ranks, threshold)]


def _greedy(boxes: Tensor, threshold: float, offset: int) -> Tensor:
    """Indices that greedy suppression keeps of boxes in order, block by block."""
    kept = []
    rest = torch.arange(len(boxes), device=boxes.device)
    while len(rest):
        block, rest = rest[:BLOCK], rest[BLOCK:]
        over = (_iou(boxes[block], boxes[block], offset) > threshold).triu(1)
        # A box is kept if no kept one before it overlaps it. Starting from all, each round settles
        # at least one more; what no longer changes is the one solution.
        keep = torch.ones_like(block, dtype=torch.bool)
        while not torch.equal(keep, keep := ~(over & keep[:, None]).any(0)):
            pass
        block = block[keep]
        kept.append(block)
        rest = rest[~(_iou(boxes[block], boxes[rest], offset) > threshold).any(0)]
    return torch.cat(kept) if kept else rest


def _iou(first: Tensor, second: Tensor, offset: int) -> Tensor:
    """Intersection over union (N, M) of boxes (N, 4) and (M, 4); NaN where both are empty."""
    sizes = [boxes[:, 2:] - boxes[:, :2] + offset for boxes in (first, second)]
    areas = [size[:, 0] * size[:, 1] for size in sizes]
    low = torch.maximum(first[:, None, :2], second[:, :2])
    common = (torch.minimum(first[:, None, 2:], second[:, 2:]) - low + offset).clamp(min=0)
    intersection = common[..., 0] * common[..., 1]
    return intersection / (areas[0][:, None] + areas[1] - intersection)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Lower the scores of overlapping boxes instead of dropping the boxes (arXiv 1704.04503).

    One round per box that remains, each over all boxes; mmcv calls it with tensors on the CPU.

    Args:
        boxes (Tensor): (N, 4) float32.
        scores (Tensor): (N,) float32.
        dets (Tensor): (N, 5), filled with the K remaining boxes and their scores.
        iou_threshold (float): Overlap from which scores fall, for methods 0 and 1.
        sigma (float): Width of the Gaussian, for method 2.
        min_score (float): Boxes whose score falls below it go.
        method (int): 0, the box goes; 1, times 1 - overlap; 2, times exp(-overlap² / sigma).
        offset (int): 0 or 1, added to widths and heights.

    Returns:
        Tensor: (K,) int64, the indices of the remaining boxes in the order they were taken.
    """
    indices = torch.arange(len(boxes))
    rows = torch.cat([boxes, scores[:, None]], 1)
    taken: list[Tensor] = []
    while len(rows):
        # The order of the compiled operator, which decides between equal scores: the best changes
        # places with the first, and the last box fills the place of one that goes. NaN, the overlap
        # of two empty boxes, is best where it stands first and otherwise last.
        ranking = rows[:, 4].nan_to_num(nan=-torch.inf)
        best = 0 if rows[0, 4].isnan() else int(ranking.argmax())
        swap = torch.arange(len(rows))
        swap[best] = 0
        dets[len(taken)] = rows[best]
        taken.append(indices[best])
        box, rows, indices = rows[best, None, :4], rows[swap][1:], indices[swap][1:]
        overlap = _iou(box, rows[:, :4], offset)[0]
        if method == 2:
            weight = torch.exp(-(overlap * overlap) / sigma)
        else:
            lowered = torch.zeros_like(overlap) if method == 0 else 1 - overlap
            weight = torch.where(overlap >= iou_threshold, lowered, 1.0)
        rows[:, 4] *= weight
        alive = ~(rows[:, 4] < min_score)
        place = torch.arange(len(rows))
        count = int(alive.sum())
        holes, fillers = place[:count][~alive[:count]], place[count:][alive[count:]]
        place[holes] = fillers.flip(0)
        rows, indices = rows[place[:count]], indices[place[:count]]
    return torch.stack(taken) if taken else indices
