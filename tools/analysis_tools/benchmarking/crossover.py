"""Where two curves over the image size meet, and how to say it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

# Ratios this close to 1 are told as equal: less than what a repetition may differ by.
_EQUAL = 0.02


def crossings(sizes: Sequence[float], ratios: Sequence[float]) -> list[float]:
    """Where a ratio passes 1, interpolated linearly between the logarithms of both.

    Args:
        sizes: Increasing, positive.
        ratios: Ours over theirs at each size, positive.

    Returns:
        Every size at which the ratio is 1 or changes from one side of it to the other; empty if
        it stays on one side.

    Raises:
        ValueError: The sequences differ in length, or the sizes do not increase.
    """
    if len(sizes) != len(ratios):
        raise ValueError(f'{len(sizes)} sizes and {len(ratios)} ratios: give one ratio a size')
    if any(a >= b for a, b in pairwise(sizes)):
        raise ValueError(f'sizes must increase, got {list(sizes)}')
    points = [(math.log(size), math.log(ratio)) for size, ratio in zip(sizes, ratios)]
    found = []
    for index, (x, y) in enumerate(points):
        if y == 0:
            found.append(float(sizes[index]))
        elif index + 1 < len(points):
            next_x, next_y = points[index + 1]
            if y * next_y < 0:
                found.append(math.exp(x + (next_x - x) * y / (y - next_y)))
    return found


def verdict(ours: str, theirs: str, sizes: Sequence[int], ratios: Sequence[float]) -> str:
    """One sentence on where we lose and where we win.

    Args:
        ours: What we are called, at the beginning of a sentence.
        theirs: What the other is called.
        sizes: Increasing image sizes in pixels.
        ratios: Our time over theirs at each size.
    """
    by_outcome: dict[str, list[str]] = {}
    for size, ratio in zip(sizes, ratios):
        outcome = 'equals' if abs(ratio - 1) < _EQUAL else 'loses to' if ratio > 1 else 'beats'
        by_outcome.setdefault(outcome, []).append(f'{size} ({ratio:.2f})')
    parts = [
        f'{outcome} {theirs} at {", ".join(by_outcome[outcome])}'
        for outcome in ('loses to', 'equals', 'beats')
        if outcome in by_outcome
    ]
    if not parts:
        return f'{ours} and {theirs}: nothing was measured at a common size.'
    meet = ' and '.join(f'{size:.0f}' for size in crossings(sizes, ratios))
    end = f'; the times meet at about {meet} pixels' if meet else '; the times do not meet there'
    return f'{ours} {", ".join(parts)}{end}.'
