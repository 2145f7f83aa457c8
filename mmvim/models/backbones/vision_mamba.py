"""Vision Mamba (Vim) as an OpenMMLab backbone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmcv.cnn.bricks.transformer import PatchEmbed
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmvim.models.arguments import (
    check_choice,
    check_keywords,
    parse_arch,
    parse_out_indices,
    parse_pair,
)
from mmvim.models.layers import VimBlock, VimMixer, build_norm
from mmvim.models.layers.rope import rope_table, rotate
from mmvim.models.pos_embed import patch_grid, resize_pos_embed, square_grid
from mmvim.models.token_layout import CLS_TOKENS, cls_positions, insert_tokens, split_tokens
from mmvim.registry import MODELS
from mmvim_ops.backends import BACKENDS

# Factor of the standard deviation lost by truncating a normal draw at two of them.
_TRUNCATED_STD = 0.87962566103423978


@MODELS.register_module()
class VisionMamba(BaseModule):
    """Vision Mamba.

    A PyTorch implementation of `Vision Mamba: Efficient Visual Representation Learning with
    Bidirectional State Space Model <https://arxiv.org/abs/2401.09417>`_ for images of any size
    of at least one patch: the image is padded at the bottom and right to whole strides, and the
    position embedding is interpolated to its patch grid. With patch p and stride s the grid is
    ``ceil(max(H - p, 0) / s) + 1`` rows by the same of W columns.

    Under autocast the residual stream, norms, scan state, dt, A and D stay in float32.

    Args:
        arch (str | dict): 'nano', 'tiny', 'small' or 'base', or a dict with ``embed_dims`` and
            ``num_layers`` and, optionally, ``d_state``, ``d_conv``, ``expand``, ``dt_rank``,
            ``conv_bias`` and ``proj_bias`` (see :class:`mmvim.models.VimMixer`).
            Defaults to 'tiny'.
        img_size (int | tuple[int, int]): Image size (H, W) in pixels whose patch grid
            ``pos_embed`` is stored for. Defaults to 224.
        patch_size (int | tuple[int, int]): Defaults to 16.
        patch_stride (int | tuple[int, int], optional): Defaults to None, the patch size.
        in_channels (int): Channels of the image. Defaults to 3.
        direction (str): The paper's ablation (Sec. 4.4). 'none' scans forward only; 'sequence'
            too, but in training flips the sequences of a batch, all or none, with probability ½
            (a draw that :func:`torch.compile` cannot keep in one graph); 'block' lets even
            blocks scan forward and odd ones backward; 'block_published' is the published code's
            reading of it: blocks 2i (forward) and 2i + 1 (backward) run on the same input and
            both their outputs and streams are summed, so that the stream doubles per pair;
            'ssm' adds to every block a backward scan with its own A; 'ssm_conv' gives the
            backward direction its own convolution and projections too. Defaults to 'ssm_conv'.
        average_directions (bool): Whether 'ssm_conv' averages the two scans (True) or sums
            them; 'ssm' always sums, as published. Defaults to True.
        cls_token (str): 'none', 'head' (first), 'middle' (index ``num_patches // 2``) or
            'double' (first and last, averaged on output). Defaults to 'middle'.
        pos_embed (bool): Whether tokens get a learnt position embedding. Defaults to True.
        interpolate_mode (str): How the position embedding is resized: 'bicubic', 'bilinear' or
            'nearest'. Defaults to 'bicubic'.
        rope (str): Rotary embedding of the patch tokens before every block, never of class
            tokens: 'none', 'hidden' (the stream that enters a block apart from its residual) or
            'both' (the residual too). Defaults to 'none'.
        out_indices (int | Sequence[int]): Blocks whose output is tapped, negatives count from
            the end. Taps come in the order given. With 'block_published' a tap sits after a
            whole pair, at an odd index. Defaults to -1.
        out_type (str): 'featmap' (B, D, H, W); 'cls_token' (B, D); 'avg_featmap' (B, D), the
            mean of the patch tokens; 'featmap_cls', pairs of the first two; 'raw' (B, L, D),
            all tokens. Defaults to 'featmap'.
        tap (str): 'residual' taps the stream after a block (hidden + residual), 'mixer' the
            output of the block's mixer alone. As published, the stream is taken as the next
            block receives it, which with rope has been rotated once more; that of the deepest
            tap has not. Defaults to 'residual'.
        out_norm (str): 'none', 'last' (the deepest tap) or 'all' (every tap, a norm each).
            With ``tap='mixer'`` only 'none' is valid. Defaults to 'last'.
        norm_cfg (dict): Config of the norms, looked up in mmvim's registry first, then in the
            default scope. Defaults to ``dict(type='RMSNorm', eps=1e-5)``.
        layer_scale_init (float, optional): Initial value of a learnt scale per channel on every
            mixer's output. Defaults to None, no such scale.
        drop_rate (float): Dropout after the position embedding. Defaults to 0.
        drop_path_rate (float): Stochastic depth. Block 0 has rate 0, block i + 1 the i-th of
            ``linspace(0, drop_path_rate, num_layers)``, acting on the block's input branch; the
            final add has ``drop_path_rate``, and none where ``out_type`` holds feature maps, as
            published. Defaults to 0.
        frozen_stages (int): -1 freezes nothing, 0 the patch embedding and tokens, k the first k
            blocks too, ``num_layers`` all with the output norms. Defaults to -1.
        with_cp (bool): Whether to recompute the blocks' activations in the backward pass
            instead of saving them. Defaults to False.
        scan_backend (str): ``backend`` of :mod:`mmvim_ops`. Defaults to 'auto'.
        init_cfg (dict, optional): Initialisation config of mmengine. Defaults to None.

    Raises:
        TypeError: If an argument does not exist; the message names the nearest one.
        ValueError: If an argument has no valid value; the message names the valid ones.

    Example:
        >>> backbone = VisionMamba('nano', cls_token='none', out_norm='none', out_indices=(0, 1))
        >>> [tuple(tap.shape) for tap in backbone(torch.rand(1, 3, 64, 96))]
        [(1, 64, 4, 6), (1, 64, 4, 6)]
    """

    arch_zoo = {
        # Ours, for demos and tests.
        'nano': dict(embed_dims=64, num_layers=4),
        # Vim, Sec. 3.4 and the released models.
        'tiny': dict(embed_dims=192, num_layers=24),
        'small': dict(embed_dims=384, num_layers=24),
        'base': dict(embed_dims=768, num_layers=24),
    }
    OUT_TYPES = ('featmap', 'cls_token', 'avg_featmap', 'featmap_cls', 'raw')
    OUT_NORMS = ('none', 'last', 'all')
    DIRECTIONS = ('none', 'sequence', 'block', 'block_published', 'ssm', 'ssm_conv')
    ROPES = ('none', 'hidden', 'both')
    TAPS = ('residual', 'mixer')
    INTERPOLATE_MODES = ('bicubic', 'bilinear', 'nearest')

    def __new__(cls, *args: Any, **kwargs: Any) -> VisionMamba:
        """Refuse a misspelt argument with the nearest valid one in the message."""
        check_keywords(cls, kwargs)
        return super().__new__(cls)

    def __init__(
        self,
        arch: str | dict[str, Any] = 'tiny',
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        patch_stride: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        direction: str = 'ssm_conv',
        average_directions: bool = True,
        cls_token: str = 'middle',
        pos_embed: bool = True,
        interpolate_mode: str = 'bicubic',
        rope: str = 'none',
        out_indices: int | Sequence[int] = -1,
        out_type: str = 'featmap',
        tap: str = 'residual',
        out_norm: str = 'last',
        norm_cfg: dict[str, Any] = dict(type='RMSNorm', eps=1e-5),
        layer_scale_init: float | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        scan_backend: str = 'auto',
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.arch_settings = parse_arch(arch, self.arch_zoo)
        mixer_settings = dict(self.arch_settings)
        self.embed_dims: int = mixer_settings.pop('embed_dims')
        self.num_layers: int = mixer_settings.pop('num_layers')
        self.img_size = parse_pair('img_size', img_size)
        self.patch_size = parse_pair('patch_size', patch_size)
        self.patch_stride = parse_pair(
            'patch_stride', patch_size if patch_stride is None else patch_stride
        )
        if any(i < p for i, p in zip(self.img_size, self.patch_size)):
            raise ValueError(
                f'img_size {self.img_size} is smaller than one patch of {self.patch_size}: '
                'choose a larger img_size or a smaller patch_size.'
            )
        check_choice('direction', direction, self.DIRECTIONS)
        check_choice('rope', rope, self.ROPES)
        check_choice('cls_token', cls_token, CLS_TOKENS)
        check_choice('interpolate_mode', interpolate_mode, self.INTERPOLATE_MODES)
        check_choice('out_type', out_type, self.OUT_TYPES)
        check_choice('tap', tap, self.TAPS)
        check_choice('out_norm', out_norm, self.OUT_NORMS)
        if out_type in ('cls_token', 'featmap_cls') and cls_token == 'none':
            raise ValueError(
                f"out_type={out_type!r} needs a class token, but cls_token='none': choose "
                "cls_token='head', 'middle' or 'double', or another out_type."
            )
        if tap == 'mixer' and out_norm != 'none':
            raise ValueError(
                f"tap='mixer' gives bare mixer outputs, which have no norm: set out_norm='none' "
                f"(given {out_norm!r}), or tap='residual'."
            )
        for name, rate in (('drop_rate', drop_rate), ('drop_path_rate', drop_path_rate)):
            if not 0 <= rate < 1:
                raise ValueError(f'{name} must lie in [0, 1), got {rate!r}.')
        if not isinstance(frozen_stages, int) or not -1 <= frozen_stages <= self.num_layers:
            raise ValueError(
                f'frozen_stages must be an int in -1 … {self.num_layers} (the number of blocks), '
                f'got {frozen_stages!r}.'
            )
        check_choice('scan_backend', scan_backend, BACKENDS)
        if rope != 'none' and self.embed_dims % 4:
            raise ValueError(
                f'rope={rope!r} rotates pairs of channels per axis: embed_dims must be a multiple '
                f'of 4, got {self.embed_dims}.'
            )
        if direction == 'block_published' and self.num_layers % 2:
            raise ValueError(
                "direction='block_published' runs blocks in pairs: num_layers must be even, got "
                f'{self.num_layers}.'
            )
        self.in_channels = in_channels
        self.direction = direction
        self.rope = rope
        self.cls_token_type = cls_token
        self.interpolate_mode = interpolate_mode
        self.out_indices = parse_out_indices(out_indices, self.num_layers)
        if direction == 'block_published' and not all(i % 2 for i in self.out_indices):
            raise ValueError(
                f"with direction='block_published' taps sit after whole pairs, at odd indices; "
                f'got out_indices={out_indices!r}.'
            )
        self.out_type = out_type
        self.tap = tap
        self.out_norm = out_norm
        self.frozen_stages = frozen_stages
        self.with_cp = with_cp

        self.patch_embed = PatchEmbed(
            in_channels=in_channels,
            embed_dims=self.embed_dims,
            kernel_size=self.patch_size,
            stride=self.patch_stride,
            padding=0,
        )
        self.grid_size = patch_grid(self.img_size, self.patch_size, self.patch_stride)
        num_cls_tokens = CLS_TOKENS[cls_token]
        # Patch rows and class-token rows are separate parameters, so that no code ever has to
        # guess where the class token sits.
        self.cls_token = self._tokens(num_cls_tokens)
        self.pos_embed = self._tokens(math.prod(self.grid_size) if pos_embed else 0)
        self.cls_pos_embed = self._tokens(num_cls_tokens if pos_embed else 0)
        if pos_embed:
            # Saved beside the rows: their number alone does not tell 4x9 from 6x6.
            self.register_buffer('pos_embed_grid', torch.tensor(self.grid_size))
        self.drop_after_pos = nn.Dropout(drop_rate)

        steps = max(self.num_layers - 1, 1)
        rates = [drop_path_rate * i / steps for i in range(self.num_layers)]
        self.layers = nn.ModuleList(
            VimBlock(
                self.embed_dims,
                norm_cfg=norm_cfg,
                drop_path_rate=rate,
                direction=direction if direction in ('ssm', 'ssm_conv') else 'none',
                reverse=direction in ('block', 'block_published') and index % 2 == 1,
                average_directions=average_directions,
                layer_scale_init=layer_scale_init,
                scan_backend=scan_backend,
                **mixer_settings,
            )
            for index, rate in enumerate([0.0, *rates[:-1]])
        )
        final_rate = 0.0 if out_type in ('featmap', 'featmap_cls') else drop_path_rate
        self.drop_path = DropPath(final_rate) if final_rate > 0 else nn.Identity()
        deepest = max(self.out_indices)
        if out_norm != 'none':
            self.norm_f = build_norm(norm_cfg, self.embed_dims)
        self.tap_norms = nn.ModuleDict(
            {
                str(index): build_norm(norm_cfg, self.embed_dims)
                for index in self.out_indices
                if out_norm == 'all' and index != deepest
            }
        )
        self.reset_parameters()
        self._register_load_state_dict_pre_hook(self._prepare_pos_embed)
        self._freeze_stages()

    def _tokens(self, count: int) -> nn.Parameter | None:
        """A parameter of ``count`` token rows, (1, count, D), or None for no rows."""
        return nn.Parameter(torch.empty(1, count, self.embed_dims)) if count else None

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as published.

        Patch embedding: truncated LeCun-normal, bias 0; class token and position embedding:
        normal with standard deviation 0.02; output projections: uniform, divided by the square
        root of the number of blocks. The mixers draw the rest, see
        :meth:`mmvim.models.VimMixer.reset_parameters`.
        """
        projection = self.patch_embed.projection
        std = projection.weight[0].numel() ** -0.5 / _TRUNCATED_STD
        nn.init.trunc_normal_(projection.weight, std=std, a=-2 * std, b=2 * std)
        nn.init.zeros_(projection.bias)
        for tokens in (self.cls_token, self.pos_embed, self.cls_pos_embed):
            if tokens is not None:
                nn.init.trunc_normal_(tokens, std=0.02)
        for module in self.modules():
            if isinstance(module, VimMixer):
                nn.init.kaiming_uniform_(module.out_proj.weight, a=math.sqrt(5))
                module.out_proj.weight /= math.sqrt(self.num_layers)

    def _prepare_pos_embed(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Resize the patch rows of a state dict that was made for another grid."""
        name = prefix + 'pos_embed'
        if self.pos_embed is None or name not in state_dict:
            return
        rows = state_dict[name].shape[1]
        target = self.grid_size
        stored = state_dict.get(name + '_grid')
        if stored is not None:
            source = (int(stored[0]), int(stored[1]))
        elif rows == math.prod(target):
            source = target
        else:
            try:
                source = square_grid(rows)
            except ValueError as error:
                raise ValueError(
                    f'{name}: {error} Resize it to the {target} grid of this model first '
                    '(mmvim.models.pos_embed.resize_pos_embed).'
                ) from None
        if source != target:
            MMLogger.get_current_instance().info(
                f'Resize {name} from a grid of {source} to {target} ({self.interpolate_mode}).'
            )
            state_dict[name] = resize_pos_embed(
                state_dict[name], source, target, self.interpolate_mode
            )
        state_dict[name + '_grid'] = self.pos_embed_grid.clone()

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        for tokens in (self.cls_token, self.pos_embed, self.cls_pos_embed):
            if tokens is not None:
                tokens.requires_grad = False
        self.drop_after_pos.eval()
        frozen: list[nn.Module] = [self.patch_embed, *self.layers[: self.frozen_stages]]
        if self.frozen_stages == self.num_layers:
            frozen += [self.tap_norms, self.drop_path]
            frozen += [self.norm_f] if self.out_norm != 'none' else []
        for module in frozen:
            module.eval()
            for param in module.parameters():
                param.requires_grad = False

    def train(self, mode: bool = True) -> VisionMamba:
        """Switch to training mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        if mode:
            self._freeze_stages()
        return self

    def _embed(self, image: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """Image (B, C, H, W) in pixels -> tokens (B, L, D) and the patch grid."""
        if image.ndim != 4 or image.shape[1] != self.in_channels:
            raise ValueError(
                f'expected an image batch of shape (B, {self.in_channels}, H, W), got '
                f'{tuple(image.shape)}; in_channels sets the number of channels.'
            )
        size = (image.shape[2], image.shape[3])
        if size[0] < self.patch_size[0] or size[1] < self.patch_size[1]:
            raise ValueError(
                f'the image of {size[0]}x{size[1]} pixels is smaller than one patch of '
                f'{self.patch_size[0]}x{self.patch_size[1]}.'
            )
        grid = patch_grid(size, self.patch_size, self.patch_stride)
        bottom, right = (
            (n - 1) * stride + patch - pixels
            for n, stride, patch, pixels in zip(grid, self.patch_stride, self.patch_size, size)
        )
        # With a stride above the patch size the last pixels of a side may lie in no patch.
        image = F.pad(image, (0, max(right, 0), 0, max(bottom, 0)))
        patches, _ = self.patch_embed(image)  # (B, H·W, D)
        if self.pos_embed is not None:
            patches = patches + resize_pos_embed(
                self.pos_embed, self.grid_size, grid, self.interpolate_mode
            )
        if self.cls_token is None:
            return self.drop_after_pos(patches), grid
        cls_tokens: torch.Tensor = self.cls_token
        if self.cls_pos_embed is not None:
            cls_tokens = cls_tokens + self.cls_pos_embed
        cls_tokens = cls_tokens.to(patches.dtype).expand(patches.shape[0], -1, -1)
        return self.drop_after_pos(insert_tokens(patches, cls_tokens, self.cls_token_type)), grid

    def forward(self, x: torch.Tensor) -> tuple[Any, ...]:
        """Run the backbone.

        Args:
            x (torch.Tensor): Images of shape (B, in_channels, H, W), at least one patch large.

        Returns:
            tuple: One entry per tap, as ``out_type`` says: tensors, or pairs of tensors for
            'featmap_cls'.

        Raises:
            ValueError: If the shape does not fit.
        """
        tokens, grid = self._embed(x)
        table = None if self.rope == 'none' else rope_table(self.embed_dims, grid, x.device)
        positions = cls_positions(self.cls_token_type, math.prod(grid))
        # A flipped sequence is scanned from its other end; nothing has to change place.
        flip = self.direction == 'sequence' and self.training and torch.rand(()).item() < 0.5
        pairs = self.direction == 'block_published'
        taps: dict[int, torch.Tensor] = {}
        deepest = max(self.out_indices)
        hidden, residual = tokens, None
        for index in range(0, deepest + 1, 2 if pairs else 1):
            if table is not None:
                hidden = rotate(hidden, table, positions)
                if residual is not None and self.rope == 'both':
                    residual = rotate(residual, table, positions)
            if pairs:
                forward = self._run(index, hidden, residual)
                backward = self._run(index + 1, hidden, residual)
                hidden, residual = forward[0] + backward[0], forward[1] + backward[1]
                taps[index + 1] = hidden if self.tap == 'mixer' else hidden + residual
                continue
            hidden, residual = self._run(index, hidden, residual, flip)
            # The stream after a block is what the next block starts from. Only taps are kept.
            after = index if self.tap == 'mixer' else index - 1
            if after in self.out_indices:
                taps[after] = hidden if self.tap == 'mixer' else residual
        if self.tap == 'residual':
            taps[deepest] = residual + self.drop_path(hidden)
        return tuple(
            self._format_output(self._normalise(taps[index], index), grid)
            for index in self.out_indices
        )

    def _run(
        self, index: int, hidden: torch.Tensor, residual: torch.Tensor | None, flip: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run block ``index``, without saving its activations if asked to."""
        block = self.layers[index]
        if self.with_cp and torch.is_grad_enabled():
            return checkpoint(block, hidden, residual, flip, use_reentrant=False)
        return block(hidden, residual, flip)

    def _normalise(self, tokens: torch.Tensor, index: int) -> torch.Tensor:
        """Apply the output norm of tap ``index``, if it has one, to tokens (B, L, D)."""
        if self.out_norm != 'none' and index == max(self.out_indices):
            norm = self.norm_f
        elif str(index) in self.tap_norms:
            norm = self.tap_norms[str(index)]
        else:
            return tokens
        return norm(tokens.to(self.patch_embed.projection.weight.dtype))

    def _format_output(self, tokens: torch.Tensor, grid: tuple[int, int]) -> Any:
        """Tokens (B, L, D) -> the output type asked for; H, W is the patch grid."""
        if self.out_type == 'raw':
            return tokens
        patches, cls_tokens = split_tokens(tokens, self.cls_token_type)
        if self.out_type == 'cls_token':
            return cls_tokens.mean(dim=1)  # (B, D)
        if self.out_type == 'avg_featmap':
            return patches.mean(dim=1)
        featmap = patches.transpose(1, 2).unflatten(2, grid).contiguous()  # (B, D, H, W)
        return (featmap, cls_tokens.mean(dim=1)) if self.out_type == 'featmap_cls' else featmap

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter for layer-wise learning-rate decay.

        Args:
            param_name (str): Name of the parameter in the whole model.
            prefix (str): What the backbone's parameters start with there. Defaults to ''.

        Returns:
            tuple[int, int]: Depth (0 for tokens, position and patch embedding, i + 1 for block
            i, the last for everything else, heads included) and the number of depths,
            ``num_layers + 2``.
        """
        num_depths = self.num_layers + 2
        if not param_name.startswith(prefix):
            return num_depths - 1, num_depths
        name = param_name[len(prefix) :]
        if name in ('cls_token', 'pos_embed', 'cls_pos_embed') or name.startswith('patch_embed.'):
            return 0, num_depths
        if name.startswith('layers.'):
            return int(name.split('.')[1]) + 1, num_depths
        return num_depths - 1, num_depths

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that must not decay beside those of at most one dimension.

        Returns:
            set[str]: Every ``A_log``, position embedding and class token; read by
            :class:`mmvim.engine.LayerDecayOptimWrapperConstructor`.
        """
        kept = {'cls_token', 'pos_embed', 'cls_pos_embed'}
        return {
            name
            for name, _ in self.named_parameters()
            if name in kept or name.endswith(('.A_log', '.A_b_log'))
        }
