"""Vision Mamba (Vim) as an OpenMMLab backbone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmcv.cnn.bricks import DropPath
from torch import nn

from mmvim.models.arguments import (
    DT_RANK,
    FLAG,
    POSITIVE,
    check_choice,
    check_positive,
    check_rate,
    parse_arch,
)
from mmvim.models.backbones.base_backbone import TOKENS
from mmvim.models.backbones.token_embedding import TokenEmbedding
from mmvim.models.layers.direction import DIRECTIONS
from mmvim.models.layers.rope import rope_table, rotate
from mmvim.models.layers.vim_block import VimBlock
from mmvim.models.layers.vim_mixer import VimMixer
from mmvim.models.token_layout import CLS_TOKENS, OUT_TYPES, format_output
from mmvim.registry import MODELS
from mmvim_ops.backends import BACKENDS


@MODELS.register_module()
class VisionMamba(TokenEmbedding):
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
            the end. Taps come in the order given. Blocks behind the deepest are not built, and
            skipped when weights are loaded. With 'block_published' a tap sits after a whole
            pair, at an odd index. Defaults to -1.
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
    ESSENTIAL = ('embed_dims', 'num_layers')
    SETTINGS = {
        **dict.fromkeys(('embed_dims', 'num_layers', 'd_state', 'd_conv', 'expand'), POSITIVE),
        'dt_rank': DT_RANK,
        **dict.fromkeys(('conv_bias', 'proj_bias'), FLAG),
    }
    DIRECTIONS = tuple(DIRECTIONS)
    ROPES = ('none', 'hidden', 'both')
    TAPS = ('residual', 'mixer')

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
        mixer_settings = parse_arch(
            arch, self.arch_zoo, self.SETTINGS, ('embed_dims', 'num_layers')
        )
        embed_dims: int = mixer_settings.pop('embed_dims')
        num_layers: int = mixer_settings.pop('num_layers')
        check_choice('direction', direction, self.DIRECTIONS)
        check_choice('rope', rope, self.ROPES)
        check_choice('cls_token', cls_token, CLS_TOKENS)
        check_choice('out_type', out_type, OUT_TYPES)
        check_choice('tap', tap, self.TAPS)
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
        check_rate('drop_rate', drop_rate)
        check_rate('drop_path_rate', drop_path_rate)
        check_positive('in_channels', in_channels)
        check_choice('scan_backend', scan_backend, BACKENDS)
        if rope != 'none' and embed_dims % 4:
            raise ValueError(
                f'rope={rope!r} rotates pairs of channels per axis: embed_dims must be a multiple '
                f'of 4, got {embed_dims}.'
            )
        image = (img_size, patch_size, patch_stride, in_channels)
        tokens = (cls_token, pos_embed, interpolate_mode, drop_rate)
        super().__init__(embed_dims, *image, *tokens, init_cfg)
        self.num_layers = num_layers
        self.direction = direction
        self._scans = DIRECTIONS[direction]
        # Blocks are run in pairs or one by one; taps sit after either.
        self._stride = 2 if self._scans.pairs else 1
        if num_layers % self._stride:
            raise ValueError(
                f'direction={direction!r} runs blocks in pairs: num_layers must be even, got '
                f'{num_layers}.'
            )
        outputs = (out_indices, out_norm, out_type)
        self._set_up_taps('blocks', num_layers, *outputs, frozen_stages, with_cp)
        if any((i + 1) % self._stride for i in self.out_indices):
            raise ValueError(
                f'with direction={direction!r} taps sit after whole pairs, at odd indices; '
                f'got out_indices={out_indices!r}.'
            )
        self.rope = rope
        self.tap = tap

        # What lies behind the deepest tap would learn nothing, and stop distributed training.
        rates = [drop_path_rate * i / max(num_layers - 1, 1) for i in range(self._deepest)]
        self.layers = nn.ModuleList(
            VimBlock(
                embed_dims,
                norm_cfg=norm_cfg,
                drop_path_rate=rate,
                direction=direction,
                average_directions=average_directions,
                layer_scale_init=layer_scale_init,
                scan_backend=scan_backend,
                **mixer_settings,
            )
            for rate in [0.0, *rates]
        )
        final_rate = 0.0 if out_type in ('featmap', 'featmap_cls') else drop_path_rate
        self.drop_path = DropPath(final_rate) if final_rate > 0 else nn.Identity()
        self._set_up_norms(norm_cfg, [embed_dims] * num_layers)
        self.reset_parameters()
        self._freeze_stages()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as published: tokens as their base class says, and the output projections.

        These are drawn uniform and divided by the square root of the number of blocks; the mixers
        draw the rest, see :meth:`mmvim.models.VimMixer.reset_parameters`.
        """
        super().reset_parameters()
        for module in self.modules():
            if isinstance(module, VimMixer):
                nn.init.kaiming_uniform_(module.out_proj.weight, a=math.sqrt(5))
                module.out_proj.weight /= math.sqrt(self.num_layers)

    def _fit_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Leave out blocks that are not built, and fit the position embedding."""
        super()._fit_state_dict(state_dict, prefix, *args)
        self._skip_unbuilt(state_dict, prefix)

    def _unbuilt(self) -> list[str]:
        return [f'layers.{i}.' for i in range(len(self.layers), self.num_layers)]

    def _frozen_modules(self) -> list[nn.Module]:
        frozen = [self.patch_embed, self.drop_after_pos, *self.layers[: self.frozen_stages]]
        if self.frozen_stages == self.num_layers:
            frozen += [self.drop_path, *self._output_norms()]
        return frozen

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
        hidden, grid = self._embed(x)
        dtype = hidden.dtype
        table = None
        if self.rope != 'none':
            table = rope_table(self.embed_dims, grid, self.cls_token_type, x.device)
        # A flipped sequence is scanned from its other end; nothing has to change place.
        flipped = self._scans.flips and self.training and torch.rand(()).item() < 0.5
        residual: torch.Tensor | None = None
        taps: dict[int, torch.Tensor] = {}
        for index in range(0, len(self.layers), self._stride):
            if table is not None:
                hidden = rotate(hidden, table)
                if residual is not None and self.rope == 'both':
                    residual = rotate(residual, table)
            block = self.layers[index]
            if isinstance(block, VimBlock) and (run := self._as_op(block, hidden)):
                stream = hidden if residual is None else residual + hidden
                self._keep_stream(taps, index - 1, stream)
                hidden, residual = run(stream), None
                continue
            hidden, residual = self._run(index, hidden, residual, flipped)
            self._keep_tap(taps, index + self._stride - 1, hidden, residual)
        if residual is None:  # the last block ran as a whole
            self._keep_stream(taps, self._deepest, hidden)
        return tuple(
            format_output(
                self._normalise(taps[index], index, dtype),
                grid,
                self.out_type,
                self.cls_token_type,
            )
            for index in self.out_indices
        )

    def _run(
        self, first: int, hidden: torch.Tensor, residual: torch.Tensor | None, flipped: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run one block, or a pair of them on the same input, without saving activations if asked.

        Outputs and streams of a pair are summed.
        """
        outs = []
        for index in range(first, first + self._stride):
            args = (hidden, residual, flipped != (self._scans.alternates and index % 2 == 1))
            outs.append(self._call(self.layers[index], *args))
        if len(outs) == 1:
            return outs[0]
        return outs[0][0] + outs[1][0], outs[0][1] + outs[1][1]

    def _as_op(
        self, block: VimBlock, stream: torch.Tensor
    ) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """The op that a block may run as on the residual stream, or None.

        With rope, pairs or taps of the mixers, a block's output and its stream go apart.
        """
        if self.training or self.rope != 'none' or self.tap == 'mixer' or self._scans.pairs:
            return None
        return block.as_op(stream)

    def _keep_stream(self, taps: dict[int, torch.Tensor], index: int, stream: torch.Tensor) -> None:
        """Keep the stream after block ``index`` if it is tapped."""
        if index in self.out_indices:
            taps[index] = stream

    def _keep_tap(
        self,
        taps: dict[int, torch.Tensor],
        index: int,
        hidden: torch.Tensor,
        residual: torch.Tensor,
    ) -> None:
        """Keep what is tapped once block ``index`` has run."""
        if self.tap == 'mixer':
            if index in self.out_indices:
                taps[index] = hidden
            return
        if index - 1 in self.out_indices:  # the next block starts from the stream after a block
            taps[index - 1] = residual
        if index == self._deepest:
            taps[index] = residual + self.drop_path(hidden)
        elif self._scans.pairs and index in self.out_indices:
            taps[index] = residual + hidden

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
        part, *rest = param_name.removeprefix(prefix).split('.')
        if part in (*TOKENS, 'patch_embed') and param_name.startswith(prefix):
            return 0, num_depths
        if part == 'layers' and param_name.startswith(prefix):
            return int(rest[0]) + 1, num_depths
        return num_depths - 1, num_depths

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that must not decay beside those of at most one dimension.

        Returns:
            set[str]: Every ``A_log``, position embedding and class token; read by
            :class:`mmvim.engine.LayerDecayOptimWrapperConstructor`.
        """
        return self._no_decay(('A_log', 'A_b_log'))
