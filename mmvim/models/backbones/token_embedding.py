"""From images to tokens with a position: the part of a backbone before its first block."""

from __future__ import annotations

from typing import Any

import torch
from mmcv.cnn.bricks.transformer import PatchEmbed
from torch import nn

from mmvim.models.arguments import parse_pair
from mmvim.models.backbones.base_backbone import BaseBackbone
from mmvim.models.base_module import check_whole
from mmvim.models.pos_embed import pad_to_patches, patch_grid, resize_pos_embed
from mmvim.models.token_layout import CLS_TOKENS, insert_tokens

# Factor of the standard deviation lost by truncating a normal draw at two of them.
_TRUNCATED_STD = 0.87962566103423978


class TokenEmbedding(BaseBackbone):
    """Patch embedding, class tokens and position embedding of a backbone, its base class.

    Patch rows and class-token rows of the position embedding are separate parameters, so that no
    code ever has to guess where the class token sits.

    Args:
        embed_dims (int): Number of channels D.
        *others (Any): See :class:`mmvim.models.VisionMamba`.

    Raises:
        ValueError: If a size is not positive, or the image is smaller than a patch.
    """

    def __init__(
        self,
        embed_dims: int,
        img_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        patch_stride: int | tuple[int, int] | None,
        in_channels: int,
        cls_token: str,
        pos_embed: bool,
        interpolate_mode: str,
        drop_rate: float,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.embed_dims = embed_dims
        self.img_size = parse_pair('img_size', img_size)
        self.patch_size = parse_pair('patch_size', patch_size)
        stride = patch_size if patch_stride is None else patch_stride
        self.patch_stride = parse_pair('patch_stride', stride)
        if any(i < p for i, p in zip(self.img_size, self.patch_size)):
            raise ValueError(
                f'img_size {self.img_size} is smaller than one patch of {self.patch_size}: '
                'choose a larger img_size or a smaller patch_size.'
            )
        self.in_channels = in_channels
        self.cls_token_type = cls_token
        grid = patch_grid(self.img_size, self.patch_size, self.patch_stride)
        self.patch_embed = PatchEmbed(
            in_channels=in_channels,
            embed_dims=embed_dims,
            kernel_size=self.patch_size,
            stride=self.patch_stride,
            padding=0,
        )
        num_cls_tokens = CLS_TOKENS[cls_token]
        self.cls_token = self._rows(num_cls_tokens)
        self._set_up_position(grid, pos_embed, interpolate_mode)
        self.cls_pos_embed = self._rows(num_cls_tokens if pos_embed else 0)
        self.drop_after_pos = nn.Dropout(drop_rate)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as published for Vim.

        Patch embedding: truncated LeCun-normal, bias 0; class token and position embedding:
        normal with standard deviation 0.02. The saved grid is that of the model.
        """
        check_whole(self)
        projection = self.patch_embed.projection
        std = projection.weight[0].numel() ** -0.5 / _TRUNCATED_STD
        nn.init.trunc_normal_(projection.weight, std=std, a=-2 * std, b=2 * std)
        nn.init.zeros_(projection.bias)
        self._reset_tokens()

    def _fit_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Refuse keys that are not ours, and resize the position embedding."""
        if f'{prefix}patch_embed.proj.weight' in state_dict:
            raise ValueError(
                f'{prefix}patch_embed.proj.weight is a key of the published code, or of a plain '
                "ViT: init_cfg=dict(type='mmvim.PretrainedVim', checkpoint=…) reads such files."
            )
        super()._fit_state_dict(state_dict, prefix, *args)

    def _embed(self, image: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """Image (B, C, H, W) in pixels -> tokens (B, L, D) and the patch grid."""
        self._check_image(image)
        image, grid = pad_to_patches(image, self.patch_size, self.patch_stride)
        tokens, _ = self.patch_embed(image)  # (B, H·W, D)
        if self.pos_embed is not None:
            tokens = tokens + resize_pos_embed(
                self.pos_embed, self.grid_size, grid, self.interpolate_mode
            )
        if self.cls_token is not None:
            cls_tokens: torch.Tensor = self.cls_token
            if self.cls_pos_embed is not None:
                cls_tokens = cls_tokens + self.cls_pos_embed
            cls_tokens = cls_tokens.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
            tokens = insert_tokens(tokens, cls_tokens, self.cls_token_type)
        return self.drop_after_pos(tokens), grid
