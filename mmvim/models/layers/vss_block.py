"""One block of VMamba: a mixer and an MLP, each behind a norm."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from mmcv.cnn.bricks import DropPath
from torch import nn

from mmvim.models.layers.norm import build_norm, normalise
from mmvim.models.layers.ss2d import SS2D


class VSSBlock(nn.Module):
    """A pre-norm residual block, ``x += drop_path(op(norm(x)))`` and so the MLP, if it has one.

    The residual stream stays in at least float32.

    Args:
        embed_dims (int): Number of channels D.
        mlp_ratio (float): Hidden channels of the MLP, int(``mlp_ratio`` · D); 0 for no MLP.
        norm_cfg (dict): Config of the norms.
        drop_path_rate (float): Probability to drop a branch, drawn for each. Defaults to 0.
        **mixer (Any): The other arguments of :class:`SS2D`.

    Raises:
        ValueError: If ``mlp_ratio`` leaves the MLP no channel.
    """

    def __init__(
        self,
        embed_dims: int,
        mlp_ratio: float,
        norm_cfg: dict[str, Any],
        drop_path_rate: float = 0.0,
        **mixer: Any,
    ) -> None:
        super().__init__()
        self.norm = build_norm(norm_cfg, embed_dims)
        self.op = SS2D(embed_dims, norm_cfg=norm_cfg, **mixer)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()
        hidden = int(embed_dims * mlp_ratio)
        if mlp_ratio and not hidden:
            raise ValueError(
                f'mlp_ratio={mlp_ratio!r} of {embed_dims} channels leaves none; 0 is no MLP.'
            )
        if hidden:
            self.norm2 = build_norm(norm_cfg, embed_dims)
            fc1, fc2 = nn.Linear(embed_dims, hidden), nn.Linear(hidden, embed_dims)
            self.mlp = nn.Sequential(OrderedDict(fc1=fc1, act=nn.GELU(), fc2=fc2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the block.

        Args:
            x (torch.Tensor): The residual stream, (B, H, W, D).

        Returns:
            torch.Tensor: The stream behind the block, of the same shape and dtype.
        """
        x = x + self.drop_path(self.op(normalise(self.norm, x, x.dtype)))
        if hasattr(self, 'mlp'):
            x = x + self.drop_path(self.mlp(normalise(self.norm2, x, x.dtype)))
        return x
