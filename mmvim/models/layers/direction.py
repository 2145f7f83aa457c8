"""Scan directions of a backbone: the paper's ablation (Vim, Sec. 4.4) as one table."""

from __future__ import annotations

from typing import NamedTuple


class Direction(NamedTuple):
    """One row of the ablation; the default scans every block from the first token to the last.

    Attributes:
        own (tuple[str, ...]): What a second, reverse scan in every block has to itself: A, the
            convolution, the projections, D. It shares the rest. Empty: no such scan.
        averages (bool): Whether the two scans of a block may be averaged, rather than summed.
        alternates (bool): Whether odd blocks scan from the last token to the first.
        pairs (bool): Whether blocks 2i and 2i + 1 run on the same input and are summed.
        flips (bool): Whether training turns every scan of a batch around with probability ½.
    """

    own: tuple[str, ...] = ()
    averages: bool = False
    alternates: bool = False
    pairs: bool = False
    flips: bool = False


DIRECTIONS = {
    'none': Direction(),
    'sequence': Direction(flips=True),
    'block': Direction(alternates=True),
    'block_published': Direction(alternates=True, pairs=True),
    'ssm': Direction(own=('A',)),
    'ssm_conv': Direction(own=('A', 'conv1d', 'x_proj', 'dt_proj', 'D'), averages=True),
}
