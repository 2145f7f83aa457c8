"""Where the resolution of a map changes: patch embeddings and downsampling of VMamba.

Maps are channel-last, (B, H, W, C).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mmvim.models.layers.norm import build_norm, normalise


class ConvNorm(nn.Module):
    """A convolution with bias, then a norm over the channels.

    Args:
        in_channels (int): Channels C of the map.
        out_channels (int): Channels C' of the result.
        kernel (int): Side of the kernel.
        stride (int): Step between its places.
        padding (int): Zeros around the map; what lies behind the last whole step is dropped.
        norm_cfg (dict): Config of the norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int,
        padding: int,
        norm_cfg: dict[str, Any],
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding)
        self.norm = build_norm(norm_cfg, out_channels)
        self.smallest = kernel - 2 * padding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run both.

        Args:
            x (torch.Tensor): Shape (B, H, W, C).

        Returns:
            torch.Tensor: Shape (B, H', W', C').

        Raises:
            ValueError: If the map is smaller than the kernel.
        """
        height, width = x.shape[1], x.shape[2]
        if self.smallest > 1 and min(height, width) < self.smallest:
            raise ValueError(
                f'a map of {height}x{width} is smaller than the {self.smallest}x{self.smallest} '
                'that become one position of the next: give a larger image.'
            )
        x = x.to(self.conv.weight.dtype).permute(0, 3, 1, 2)
        x = self.conv(x).permute(0, 2, 3, 1)
        return normalise(self.norm, x, x.dtype)


class PatchMerging(nn.Module):
    """Squares of 2x2 positions side by side, normalised and projected (Swin, Sec. 3.1).

    Maps of odd sides are padded with zeros at the bottom and right. In a square the row changes
    fastest, as published.

    Args:
        in_channels (int): Channels C of the map.
        out_channels (int): Channels C' of the result.
        norm_cfg (dict): Config of the norm.
    """

    def __init__(self, in_channels: int, out_channels: int, norm_cfg: dict[str, Any]) -> None:
        super().__init__()
        self.norm = build_norm(norm_cfg, 4 * in_channels)
        self.reduction = nn.Linear(4 * in_channels, out_channels, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Merge.

        Args:
            x (torch.Tensor): Shape (B, H, W, C).

        Returns:
            torch.Tensor: Shape (B, ceil(H / 2), ceil(W / 2), C').
        """
        height, width = x.shape[1], x.shape[2]
        # One line more than an even map has is not read. (Padding copies the map; a graph for any
        # size cannot ask whether it has to.)
        if torch.compiler.is_compiling() or height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, 1, 0, 1))
        corners = [x[:, i : height + i : 2, j : width + j : 2] for j in (0, 1) for i in (0, 1)]
        x = torch.cat(corners, dim=-1)
        return self.reduction(normalise(self.norm, x, x.dtype))


def build_patch_embed(
    kind: str, in_channels: int, dims: int, patch_size: int, norm_cfg: dict[str, Any]
) -> nn.Module:
    """The patch embedding of VMamba, from an image (B, H, W, in_channels) to (B, H', W', D).

    Args:
        kind (str): 'patchify': one convolution of patches side by side, H' = floor(H / patch);
            'conv': two convolutions of stride 2 that overlap, H' = ceil(H / 4).
        in_channels (int): Channels of the image.
        dims (int): Channels D.
        patch_size (int): Side of a patch.
        norm_cfg (dict): Config of the norms.

    Raises:
        ValueError: If the two convolutions are asked for other patches than 4x4, or D is odd.
    """
    if kind == 'patchify':
        return nn.Sequential(ConvNorm(in_channels, dims, patch_size, patch_size, 0, norm_cfg))
    if patch_size != 4 or dims % 2:
        raise ValueError(
            "arch['patch_embed']='conv' is two convolutions of stride 2 with D / 2 channels "
            f'between them: it needs patch_size=4 and an even D, got {patch_size} and D={dims}; '
            "patch_embed='patchify' takes any."
        )
    first = ConvNorm(in_channels, dims // 2, 3, 2, 1, norm_cfg)
    return nn.Sequential(first, nn.GELU(), ConvNorm(dims // 2, dims, 3, 2, 1, norm_cfg))


def build_downsample(
    kind: str, in_channels: int, out_channels: int, norm_cfg: dict[str, Any]
) -> nn.Module:
    """What halves a map between two stages.

    Args:
        kind (str): 'conv3': a convolution of 3x3 padded by 1, to ceil(H / 2); 'conv2': one of 2x2,
            to floor(H / 2); 'merge': :class:`PatchMerging`, to ceil(H / 2).
        in_channels (int): Channels before.
        out_channels (int): Channels behind.
        norm_cfg (dict): Config of the norm.
    """
    if kind == 'merge':
        return PatchMerging(in_channels, out_channels, norm_cfg)
    kernel = dict(conv3=3, conv2=2)[kind]
    return ConvNorm(in_channels, out_channels, kernel, 2, kernel // 3, norm_cfg)
