"""Feature maps of a backbone after chosen blocks, whatever its config makes it give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from mmvim.errors import UserError
from mmvim.models.arguments import parse_out_indices


def tap_indices(backbone: nn.Module, wanted: Sequence[int] | None = None) -> tuple[int, ...]:
    """The blocks or stages to look at.

    Args:
        backbone (nn.Module): Of any OpenMMLab library.
        wanted (Sequence[int], optional): Indices asked for, negatives from the end.
            Defaults to None: those of the config where it has several, else four spread evenly.

    Returns:
        tuple[int, ...]: Ascending; empty for a backbone without ``out_indices``.

    Raises:
        UserError: If they do not exist.
    """
    own = getattr(backbone, 'out_indices', None)
    if own is None:
        if wanted:
            raise UserError(
                f'{type(backbone).__name__} has no out_indices: its outputs cannot be chosen'
            )
        return ()
    own = (own,) if isinstance(own, int) else tuple(own)
    count = max(own) + 1  # what lies deeper never runs, and has learnt nothing
    pairs = getattr(backbone, 'direction', None) == 'block_published'
    if wanted is None:
        if len(own) > 1 or not isinstance(getattr(backbone, 'layers', None), nn.ModuleList):
            return tuple(sorted(own))
        quarters = {max(count * quarter // 4 - 1, 0) for quarter in (1, 2, 3, 4)}
        return tuple(sorted({index | 1 if pairs else index for index in quarters}))
    try:
        indices = parse_out_indices(list(wanted), count, f'{tap_unit(backbone)}s')
    except ValueError as error:
        raise UserError(str(error)) from error
    if pairs and not all(index % 2 for index in indices):
        raise UserError(
            f"with direction='block_published' taps sit after whole pairs, at odd indices; got "
            f'{list(wanted)}'
        )
    return tuple(sorted(indices))


def tap_unit(backbone: nn.Module) -> str:
    """What ``out_indices`` of a backbone count: a 'stage' of several blocks, or a 'block'."""
    # Of ours, Swin and ConvNeXt; of ResNet.
    return 'stage' if hasattr(backbone, 'depths') or hasattr(backbone, 'num_stages') else 'block'


def feature_maps(
    backbone: nn.Module, images: torch.Tensor, indices: Sequence[int] | None = None
) -> list[torch.Tensor]:
    """Feature maps after the chosen blocks, the final norm included where the config has it.

    Args:
        backbone (nn.Module): Of any OpenMMLab library.
        images (torch.Tensor): Shape (B, C, H, W), preprocessed.
        indices (Sequence[int], optional): Of :func:`tap_indices`. Defaults to None: the last map
            that the config makes the backbone compute.

    Returns:
        list[torch.Tensor]: One of shape (B, D, h, w) per index; for a backbone without
        ``out_indices`` all that it gives.

    Raises:
        UserError: If the backbone gives something else.
    """
    own = getattr(backbone, 'out_indices', None)
    deepest = () if own is None else (own,) if isinstance(own, int) else (max(own),)
    # The final norm stays where it is: the deepest output of the config is computed too.
    order = tuple(sorted({*(indices or ()), *deepest}))
    changes = dict(out_type='featmap', out_indices=order)
    given = {name: getattr(backbone, name) for name in changes if hasattr(backbone, name)}
    try:
        for name in given:
            setattr(backbone, name, changes[name])
        outputs: Any = backbone(images)
    finally:
        for name, value in given.items():
            setattr(backbone, name, value)
    if isinstance(outputs, torch.Tensor):
        outputs = (outputs,)
    # Pairs of a map and a class token, as DPT takes them.
    maps = [entry[0] if isinstance(entry, (tuple, list)) else entry for entry in outputs]
    if not all(isinstance(entry, torch.Tensor) and entry.ndim == 4 for entry in maps):
        raise UserError(
            f'{type(backbone).__name__} gives no feature maps: there are no tokens to look at'
        )
    if indices is None:
        return maps[-1:]
    return maps if own is None else [m for index, m in zip(order, maps) if index in indices]
