"""From images to tokens with a position: the part of a backbone before its first block."""

from __future__ import annotations

import math
from typing import Any

import torch
from mmcv.cnn.bricks.transformer import PatchEmbed
from mmengine.logging import MMLogger
from torch import nn

from mmvim.models.arguments import parse_pair
from mmvim.models.base_module import CheckedModule, check_whole
from mmvim.models.pos_embed import fit_pos_embed, pad_to_patches, patch_grid, resize_pos_embed
from mmvim.models.token_layout import CLS_TOKENS, insert_tokens

# Factor of the standard deviation lost by truncating a normal draw at two of them.
_TRUNCATED_STD = 0.87962566103423978
# Names of the parameters that are token rows.
TOKENS = ('cls_token', 'pos_embed', 'cls_pos_embed')


class TokenEmbedding(CheckedModule):
    """Patch embedding, class tokens and position embedding of a backbone, its base class.

    Patch rows and class-token rows of the position embedding are separate parameters, so that no
    code ever has to guess where the class token sits. The grid of the patch rows is saved beside
    them: their number alone does not tell 4x9 from 6x6.

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
        self.interpolate_mode = interpolate_mode
        self.grid_size = patch_grid(self.img_size, self.patch_size, self.patch_stride)
        self.patch_embed = PatchEmbed(
            in_channels=in_channels,
            embed_dims=embed_dims,
            kernel_size=self.patch_size,
            stride=self.patch_stride,
            padding=0,
        )
        num_cls_tokens = CLS_TOKENS[cls_token]
        self.cls_token = self._rows(num_cls_tokens)
        self.pos_embed = self._rows(math.prod(self.grid_size) if pos_embed else 0)
        self.cls_pos_embed = self._rows(num_cls_tokens if pos_embed else 0)
        self.pos_embed_grid: torch.Tensor | None
        self.register_buffer('pos_embed_grid', torch.tensor(self.grid_size) if pos_embed else None)
        self.drop_after_pos = nn.Dropout(drop_rate)
        self._register_load_state_dict_pre_hook(self._fit_state_dict)

    def _rows(self, count: int) -> nn.Parameter | None:
        """A parameter of ``count`` token rows, (1, count, D), or None for no rows."""
        return nn.Parameter(torch.empty(1, count, self.embed_dims)) if count else None

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
        for tokens in self._tokens():
            nn.init.trunc_normal_(tokens, std=0.02)
        if self.pos_embed_grid is not None:
            self.pos_embed_grid.copy_(torch.tensor(self.grid_size))

    def _tokens(self) -> list[nn.Parameter]:
        """The class tokens and position embeddings that there are."""
        return [param for name in TOKENS if (param := getattr(self, name)) is not None]

    def _fit_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Resize the patch rows of a state dict that was made for another grid."""
        if f'{prefix}patch_embed.proj.weight' in state_dict:
            raise ValueError(
                f'{prefix}patch_embed.proj.weight is a key of the published code, or of a plain '
                "ViT: init_cfg=dict(type='mmvim.PretrainedVim', checkpoint=…) reads such files."
            )
        name = prefix + 'pos_embed'
        if self.pos_embed is None:
            return
        if name in state_dict:
            given, stored = state_dict[name], state_dict.get(name + '_grid')
            try:
                fitted = fit_pos_embed(given, stored, self.grid_size, self.interpolate_mode)
            except ValueError as error:
                raise ValueError(
                    f'{name} does not fit the grid of {self.grid_size} of this model: {error}'
                ) from None
            if fitted is not given:
                MMLogger.get_current_instance().info(
                    f'Resize {name} of {given.shape[1]} rows to a grid of {self.grid_size} '
                    f'({self.interpolate_mode}).'
                )
            state_dict[name] = fitted
        # Not the buffer's own value, which a model from the meta device does not have. Where a
        # loaded tensor takes the place of the buffer, it lies beside the rows.
        rows = state_dict.get(name, self.pos_embed)
        device = 'cpu' if rows.is_meta else rows.device
        state_dict[name + '_grid'] = torch.tensor(self.grid_size, device=device)

    def _embed(self, image: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """Image (B, C, H, W) in pixels -> tokens (B, L, D) and the patch grid."""
        if image.ndim != 4 or image.shape[1] != self.in_channels:
            raise ValueError(
                f'expected an image batch of shape (B, {self.in_channels}, H, W), got '
                f'{tuple(image.shape)}; in_channels sets the number of channels.'
            )
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
