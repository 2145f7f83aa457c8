"""Positions of patches and class tokens in a sequence: pure functions, the one place that knows."""

from __future__ import annotations

from typing import Any

import torch

# Placement of the class tokens -> how many there are.
CLS_TOKENS = {'none': 0, 'head': 1, 'middle': 1, 'double': 2}
OUT_TYPES = ('featmap', 'cls_token', 'avg_featmap', 'featmap_cls', 'raw')


def cls_positions(cls_token: str, num_patches: int) -> tuple[int, ...]:
    """Indices of the class tokens in the sequence, ascending.

    Args:
        cls_token (str): 'none', 'head' (first), 'middle' (index ``num_patches // 2``) or 'double'
            (first and last).
        num_patches (int): Number M of patch tokens.

    Raises:
        ValueError: If there is no such placement.
    """
    if cls_token not in CLS_TOKENS:
        raise ValueError(f'cls_token must be one of {tuple(CLS_TOKENS)}, got {cls_token!r}.')
    return {
        'none': (),
        'head': (0,),
        'middle': (num_patches // 2,),
        'double': (0, num_patches + 1),
    }[cls_token]


def insert_tokens(
    patches: torch.Tensor, cls_tokens: torch.Tensor | None, cls_token: str
) -> torch.Tensor:
    """Put the class tokens among the patch tokens.

    Args:
        patches (torch.Tensor): Patch tokens (B, M, D).
        cls_tokens (torch.Tensor | None): The n class tokens (B, n, D) in the order of the
            sequence; None for none.
        cls_token (str): Their placement, see :func:`cls_positions`.

    Returns:
        torch.Tensor: The sequence (B, M + n, D).

    Raises:
        ValueError: If there is no such placement, or it has another number of class tokens.
    """
    positions = cls_positions(cls_token, patches.shape[1])
    given = 0 if cls_tokens is None else cls_tokens.shape[1]
    if given != len(positions):
        raise ValueError(f'cls_token={cls_token!r} has {len(positions)} class tokens, got {given}.')
    if cls_tokens is None or not positions:
        return patches
    first = positions[0]
    parts = (patches[:, :first], cls_tokens[:, :1], patches[:, first:], cls_tokens[:, 1:])
    return torch.cat(parts, dim=1)


def split_tokens(sequence: torch.Tensor, cls_token: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Undo :func:`insert_tokens`.

    Args:
        sequence (torch.Tensor): Patch and class tokens, (B, L, D).
        cls_token (str): Placement of the class tokens, see :func:`cls_positions`.

    Returns:
        tuple[torch.Tensor, torch.Tensor]: The M patch tokens (B, M, D) and the n class tokens
        (B, n, D), n = 0 for 'none'.

    Raises:
        ValueError: If there is no such placement, or the sequence is shorter than its class tokens.
    """
    num_patches = sequence.shape[1] - CLS_TOKENS.get(cls_token, 0)
    if num_patches < 0:
        raise ValueError(
            f'a sequence of {sequence.shape[1]} tokens holds no {CLS_TOKENS[cls_token]} class '
            f'tokens, as cls_token={cls_token!r} has them.'
        )
    positions = cls_positions(cls_token, num_patches)
    if not positions:
        return sequence, sequence[:, :0]
    first, last = positions[0], num_patches + 1
    patches = torch.cat([sequence[:, :first], sequence[:, first + 1 : last]], dim=1)
    cls_tokens = torch.cat([sequence[:, first : first + 1], sequence[:, last:]], dim=1)
    return patches, cls_tokens


def format_output(
    sequence: torch.Tensor, grid: tuple[int, int], out_type: str, cls_token: str
) -> Any:
    """Output of a backbone for a tapped sequence.

    Args:
        sequence (torch.Tensor): Patch and class tokens, (B, L, D).
        grid (tuple[int, int]): Rows and columns of patches (H, W).
        out_type (str): One of ``OUT_TYPES``.
        cls_token (str): Placement of the class tokens, see :func:`cls_positions`.

    Returns:
        torch.Tensor | tuple[torch.Tensor, torch.Tensor]: 'featmap' (B, D, H, W); 'cls_token'
        (B, D), the mean of two; 'avg_featmap' (B, D), the mean of the patches; 'featmap_cls', a
        pair of the first two; 'raw', the sequence.
    """
    if out_type == 'raw':
        return sequence
    patches, cls_tokens = split_tokens(sequence, cls_token)
    if out_type == 'cls_token':
        return cls_tokens.mean(dim=1)
    if out_type == 'avg_featmap':
        return patches.mean(dim=1)
    featmap = patches.transpose(1, 2).unflatten(2, grid).contiguous()
    return (featmap, cls_tokens.mean(dim=1)) if out_type == 'featmap_cls' else featmap
