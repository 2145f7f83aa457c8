"""What each token of a feature map holds: its strength, its class responses, its place."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def token_norms(maps: torch.Tensor) -> torch.Tensor:
    """Strength of every token.

    Args:
        maps (torch.Tensor): Feature map of shape (B, D, H, W).

    Returns:
        torch.Tensor: Euclidean norms over channels, (B, H, W).
    """
    return torch.linalg.vector_norm(maps, dim=1)


def class_responses(
    maps: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Apply a linear classifier to every token.

    Under mean pooling the mean of these is the classifier's output, which makes them the class
    activation maps of Zhou et al. (arXiv 1512.04150).

    Args:
        maps (torch.Tensor): Feature map of shape (B, D, H, W), as the classifier gets its tokens:
            after the final norm.
        weight (torch.Tensor): Shape (K, D) for K classes.
        bias (torch.Tensor, optional): Shape (K,). Defaults to None.

    Returns:
        torch.Tensor: Scores, (B, K, H, W).
    """
    return F.conv2d(maps, weight[:, :, None, None], bias)


def position_similarity(pos_embed: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Cosine similarity between the position embeddings of all patches.

    Args:
        pos_embed (torch.Tensor): Patch rows alone, (1, H·W, D).
        grid (tuple[int, int]): Their grid (H, W).

    Returns:
        torch.Tensor: Shape (H, W, H, W); entry [i, j] is the map of the patch in row i, column j.

    Raises:
        ValueError: If the rows do not fit the grid.
    """
    if pos_embed.shape[:2] != (1, math.prod(grid)):
        raise ValueError(
            f'pos_embed of shape {tuple(pos_embed.shape)} does not belong to a grid of '
            f'{grid[0]}x{grid[1]}: expected (1, {math.prod(grid)}, embed_dims).'
        )
    rows = F.normalize(pos_embed[0], dim=1)
    return (rows @ rows.T).reshape(*grid, *grid)
