"""Linear recurrences over the first dimension of a buffer, in place.

No step divides by a product of decays or exponentiates a positive sum: a decay that underflows to
zero stays exact instead of becoming a NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ['Recurrence', 'steps_pay']

# Elements per token from which a CPU goes token by token: below it the calls cost more than the
# extra arithmetic of the tree (measured: equal at 256, steps 1.3 times as fast at 512).
_STEPPED_ELEMENTS = 1 << 8


def steps_pay(row: Tensor) -> bool:
    """Whether going token by token is faster than a tree, for rows like this one."""
    return row.device.type == 'cpu' and row.numel() >= _STEPPED_ELEMENTS


class Recurrence:
    """``rows[t+1] += decay[t] * rows[t]`` for t = 0 ... T-1, in place on buffers used many times.

    With ``backwards``: ``rows[t] += decay[t] * rows[t+1]`` for t = T-1 ... 0.

    Args:
        decay (Tensor): (T, ...), only read.
        rows (Tensor): (T + 1, ...).
        exponent (Tensor | None): (T, ...), log2 of the decays, only read: run as a tree, with the
            fewest calls. Defaults to None: run token by token, with the least arithmetic.
        backwards (bool): The direction. Defaults to False.
    """

    def __init__(
        self, decay: Tensor, rows: Tensor, exponent: Tensor | None = None, backwards: bool = False
    ) -> None:
        self.decay, self.rows, self.exponent, self.backwards = decay, rows, exponent, backwards
        if exponent is None:
            # Views are made once: making them costs as much as a small multiply-add.
            states = rows.unbind(0)
            sources, targets = states[:-1], states[1:]
            if backwards:
                sources, targets = targets, sources
            self.steps = list(zip(targets, decay.unbind(0), sources))

    def run(self, size: int) -> None:
        """Run over the first ``size`` decays and ``size + 1`` rows."""
        if self.exponent is not None:
            self._tree(size, self.exponent[:size].clone())
            return
        steps = self.steps[:size]
        for target, decay, source in reversed(steps) if self.backwards else steps:
            target.addcmul_(decay, source)

    def _tree(self, size: int, exponent: Tensor) -> None:
        """A work-efficient parallel scan: about 4 log2(size) calls. Overwrites ``exponent``.

        Pairs (decay, row) compose associatively: (a, x) then (b, y) is (a b, b x + y). The two
        sweeps are those of Brent and Kung (1982), over every second, fourth, ... row. A product of
        decays is exp2 of the sum of their exponents: decays just below one lie on a coarse grid,
        and multiplying them would always round to the same side (a drift of the state by 2e-6 in
        float32 where dt A is about 1e-4, measured).
        """
        if self.backwards:
            start, targets, first = self.rows[size], self.rows[:size], size - 1
        else:
            start, targets, first = self.rows[0], self.rows[1 : size + 1], 0
        decay = self.decay[:size].clone()
        targets[first].addcmul_(decay[first], start)

        def combine(first: int, span: int) -> tuple[slice, slice]:
            # Scan positions first, first + 2 span, ... take in the one `span` before each of them.
            if self.backwards:
                stop = size - first
                later = slice((stop - 1) % (2 * span), stop, 2 * span)
                earlier = slice(later.start + span, stop + span, 2 * span)
            else:
                later = slice(first, size, 2 * span)
                earlier = slice(first - span, size - span, 2 * span)
            targets[later].addcmul_(decay[later], targets[earlier])
            return later, earlier

        span = 1
        while 2 * span <= size:
            later, earlier = combine(2 * span - 1, span)
            torch.exp2(exponent[later].add_(exponent[earlier]), out=decay[later])
            span *= 2
        while span >= 1:
            if 3 * span <= size:
                combine(3 * span - 1, span)
            span //= 2
