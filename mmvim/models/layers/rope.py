"""Rotary position embedding over the patch grid, as Vim's published dense models use it.

Pure functions. The tables are float32 constants, as published, whatever the model's dtype.
"""

from __future__ import annotations

import torch

from mmvim.models.token_layout import CLS_TOKENS, insert_tokens

# Grid side the rotation is defined on: other grids are stretched to it (224 / 16 patches).
_BASE_GRID = 14
_BASE = 10000.0


def rope_table(
    dims: int,
    grid: tuple[int, int],
    cls_token: str = 'none',
    device: torch.device | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of the rotation angle of every token and channel.

    With half = D / 2 and f_j = 10000^(-2j / half), j = 0 … half / 2 - 1, coordinate t of n has the
    angles 14 t / n · f_j; those of the row come first, then those of the column, each twice. Class
    tokens are turned by an angle of 0, wherever they sit.

    Args:
        dims (int): Channels D, a multiple of 4.
        grid (tuple[int, int]): Rows and columns of patches (H, W).
        cls_token (str): Placement of the class tokens. Defaults to 'none'.
        device (torch.device, optional): Where the tables are made. Defaults to torch's default.

    Returns:
        tuple[torch.Tensor, torch.Tensor]: Both float32 of shape (L, D).
    """
    half = dims // 2
    exponents = torch.arange(0, half, 2, dtype=torch.float32, device=device) / half
    frequencies = 1.0 / _BASE**exponents  # (half / 2,)
    angles = []
    for axis, n in enumerate(grid):
        steps = torch.arange(n, dtype=torch.float32, device=device) / n * _BASE_GRID
        angle = (steps[:, None] * frequencies).repeat_interleave(2, dim=1)  # (n, half)
        angle = angle[:, None] if axis == 0 else angle[None]
        angles.append(angle.expand(*grid, half))
    patches = torch.cat(angles, dim=-1).flatten(0, 1)[None]  # (1, H·W, D)
    still = patches.new_zeros(1, CLS_TOKENS[cls_token], dims)
    (table,) = insert_tokens(patches, still, cls_token)
    return table.cos(), table.sin()


def rotate(tokens: torch.Tensor, table: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotate all tokens: neighbouring channels (x0, x1) -> (x0 cos - x1 sin, x1 cos + x0 sin).

    Args:
        tokens (torch.Tensor): Shape (B, L, D).
        table (tuple[torch.Tensor, torch.Tensor]): Cosine and sine (L, D) of :func:`rope_table`.

    Returns:
        torch.Tensor: Shape (B, L, D), dtype of ``tokens``.
    """
    wide = torch.promote_types(tokens.dtype, torch.float32)
    cos, sin = (part.to(wide) for part in table)
    even, odd = tokens[..., 0::2], tokens[..., 1::2]
    partner = torch.stack([-odd, even], dim=-1).flatten(-2)
    rotated = tokens.to(wide) * cos + partner.to(wide) * sin
    return rotated.to(tokens.dtype)
