"""VMamba as an OpenMMLab backbone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import nn

from mmvim.models.arguments import (
    DT_RANK,
    FLAG,
    POSITIVE,
    Setting,
    check_choice,
    check_positive,
    check_rate,
    parse_arch,
    parse_pair,
)
from mmvim.models.backbones.base_backbone import TOKENS, BaseBackbone
from mmvim.models.base_module import check_whole
from mmvim.models.layers.map_sampling import build_downsample, build_patch_embed
from mmvim.models.layers.ss2d import GATES
from mmvim.models.layers.vss_block import VSSBlock
from mmvim.models.pos_embed import resize_pos_embed
from mmvim.models.token_layout import format_output
from mmvim.registry import MODELS
from mmvim_ops.backends import BACKENDS


def _are_positive(value: Any) -> bool:
    return isinstance(value, Sequence) and bool(value) and all(map(POSITIVE.valid, value))


def _is_ratio(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < float('inf')


@MODELS.register_module()
class VMamba(BaseBackbone):
    """VMamba.

    A PyTorch implementation of `VMamba: Visual State Space Model
    <https://arxiv.org/abs/2401.10166>`_ in the form of its released models, for images of any
    size of at least one patch. Four stages, each of which halves the map before it, of blocks that
    scan the map along rows and columns, both ways (:class:`mmvim.models.SS2D`).

    Nothing is padded but where the published code pads: convolutions of 3x3 with a line of zeros
    around the map, so that 'conv' and 'conv3' round sizes up; 'merge' a line of zeros at the bottom
    or right of an odd map. 'patchify' and 'conv2' drop what is left over at the bottom and right.

    Under autocast the residual stream, norms, scan state, dt, A and D stay in float32.

    Args:
        arch (str | dict): A released model: 'tiny_s1l8', 'small_s1l20', 'base_s1l20',
            'tiny_s2l5', 'small_s2l15', 'base_s2l15' (s is ``ssm_ratio``, l the depth of the third
            stage), 'v0_tiny', 'v0_small' or 'v0_base'; 'nano' (ours, for demos and tests); or a
            dict with ``dims`` (channels of every stage, or of the first, which then double) and
            ``depths`` (blocks of every stage) and, optionally,

            - ``d_state`` (1), ``dt_rank`` ('auto'), ``ssm_ratio`` (1), ``conv_kernel`` (3),
              ``conv_bias`` (False), ``gate`` ('none'): see :class:`mmvim.models.SS2D`;
            - ``mlp_ratio`` (4): hidden channels of the MLP over channels, 0 for no MLP;
            - ``patch_embed`` ('conv'): 'conv', two convolutions of stride 2, or 'patchify', one;
            - ``downsample`` ('conv3'): 'conv3' or 'conv2', a convolution of that side, or 'merge',
              Swin's patch merging;
            - ``pos_embed`` (False): whether positions get a learnt embedding. No released model
              has one.

            Defaults to 'tiny_s1l8'.
        img_size (int | tuple[int, int]): Image size (H, W) in pixels whose patch grid
            ``pos_embed`` is stored for. Defaults to 224.
        patch_size (int): Side of a patch; 'conv' takes 4 alone. Defaults to 4.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (int | Sequence[int]): Stages whose output is tapped, before it is downsampled;
            negatives count from the end. Taps come in the order given. Stages behind the deepest
            are not built, and skipped when weights are loaded. Defaults to (0, 1, 2, 3).
        out_norm (str): 'none', 'last' (the deepest tap) or 'all' (every tap, a norm each, as the
            published dense models). Defaults to 'all'.
        out_type (str): 'featmap' (B, D, H, W); 'avg_featmap' (B, D), the mean over the map, which
            the published classifiers take; 'raw' (B, H·W, D). Defaults to 'featmap'.
        drop_path_rate (float): Stochastic depth: block i of n has the rate
            ``drop_path_rate * i / (n - 1)``. Defaults to 0.
        norm_cfg (dict): Config of all norms, over the channels of a position, looked up in mmvim's
            registry first, then in the default scope. 'LN2d' and 'LN' are one layer, since maps
            lie with their channels last. Defaults to ``dict(type='LN2d', eps=1e-5)``.
        frozen_stages (int): -1 freezes nothing, 0 the patch embedding, k the first k stages too
            with what downsamples their maps, all of them with the output norms. Defaults to -1.
        with_cp (bool): Whether to recompute the blocks' activations in the backward pass
            instead of saving them. Defaults to False.
        scan_backend (str): ``backend`` of :mod:`mmvim_ops`. Defaults to 'auto'.
        init_cfg (dict, optional): Initialisation config of mmengine. Defaults to None.

    Raises:
        TypeError: If an argument does not exist; the message names the nearest one.
        ValueError: If an argument has no valid value; the message names the valid ones.

    Example:
        >>> backbone = VMamba('nano')
        >>> [tuple(tap.shape) for tap in backbone(torch.rand(1, 3, 64, 90))]
        [(1, 32, 16, 23), (1, 64, 8, 12), (1, 128, 4, 6), (1, 256, 2, 3)]
    """

    _V0 = dict(
        d_state=16,
        ssm_ratio=2,
        conv_bias=True,
        gate='silu',
        mlp_ratio=0,
        patch_embed='patchify',
        downsample='merge',
    )
    arch_zoo: dict[str, dict[str, Any]] = {
        # Ours, for demos and tests.
        'nano': dict(dims=32, depths=(1, 1, 2, 1)),
        # The released models, by the names of their configs.
        'tiny_s1l8': dict(dims=96, depths=(2, 2, 8, 2)),
        'small_s1l20': dict(dims=96, depths=(2, 2, 20, 2)),
        'base_s1l20': dict(dims=128, depths=(2, 2, 20, 2)),
        'tiny_s2l5': dict(dims=96, depths=(2, 2, 5, 2), ssm_ratio=2),
        'small_s2l15': dict(dims=96, depths=(2, 2, 15, 2), ssm_ratio=2),
        'base_s2l15': dict(dims=128, depths=(2, 2, 15, 2), ssm_ratio=2),
        # The first release.
        'v0_tiny': dict(dims=96, depths=(2, 2, 9, 2), **_V0),
        'v0_small': dict(dims=96, depths=(2, 2, 27, 2), **_V0),
        'v0_base': dict(dims=128, depths=(2, 2, 27, 2), **_V0),
    }
    ESSENTIAL = ('dims', 'depths')
    SETTINGS = {
        'dims': Setting(
            lambda value: POSITIVE.valid(value) or _are_positive(value),
            'a positive int, or one for every stage',
        ),
        'depths': Setting(_are_positive, 'a list of positive ints'),
        'd_state': POSITIVE,
        'dt_rank': DT_RANK,
        'ssm_ratio': Setting(lambda value: _is_ratio(value) and value > 0, 'a positive number'),
        'conv_kernel': Setting(
            lambda value: POSITIVE.valid(value) and value % 2 == 1, 'an odd positive int'
        ),
        'conv_bias': FLAG,
        'gate': Setting.choice(*GATES),
        'mlp_ratio': Setting(_is_ratio, 'a number of at least 0'),
        'patch_embed': Setting.choice('conv', 'patchify'),
        'downsample': Setting.choice('conv3', 'conv2', 'merge'),
        'pos_embed': FLAG,
    }
    OUT_TYPES = ('featmap', 'avg_featmap', 'raw')

    def __init__(
        self,
        arch: str | dict[str, Any] = 'tiny_s1l8',
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        in_channels: int = 3,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        out_norm: str = 'all',
        out_type: str = 'featmap',
        drop_path_rate: float = 0.0,
        norm_cfg: dict[str, Any] = dict(type='LN2d', eps=1e-5),
        frozen_stages: int = -1,
        with_cp: bool = False,
        scan_backend: str = 'auto',
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        settings = parse_arch(arch, self.arch_zoo, self.SETTINGS, self.ESSENTIAL)
        check_choice('out_type', out_type, self.OUT_TYPES)
        check_choice('scan_backend', scan_backend, BACKENDS)
        check_rate('drop_path_rate', drop_path_rate)
        check_positive('patch_size', patch_size)
        check_positive('in_channels', in_channels)
        super().__init__(init_cfg)
        self.depths = tuple(settings.pop('depths'))
        self.dims = dims_of_stages(settings.pop('dims'), len(self.depths))
        self.embed_dims = self.dims[0]
        self.num_layers = sum(self.depths)
        self.in_channels = in_channels
        self.patch_size = patch_size
        self.img_size = parse_pair('img_size', img_size)
        outputs = (out_indices, out_norm, out_type)
        self._set_up_taps('stages', len(self.depths), *outputs, frozen_stages, with_cp)

        embedding = settings.pop('patch_embed', 'conv')
        self.patch_embed = build_patch_embed(
            embedding, in_channels, self.embed_dims, patch_size, norm_cfg
        )
        # Sides of the grid: rounded up by 'conv', down by 'patchify'.
        left_over = patch_size - 1 if embedding == 'conv' else 0
        rows, columns = ((side + left_over) // patch_size for side in self.img_size)
        if not min(rows, columns):
            raise ValueError(f'img_size {self.img_size} is smaller than a patch of {patch_size}.')
        self._set_up_position((rows, columns), settings.pop('pos_embed', False), 'bicubic')

        downsample = settings.pop('downsample', 'conv3')
        settings = {'mlp_ratio': 4.0, 'scan_backend': scan_backend, **settings}
        step = drop_path_rate / max(self.num_layers - 1, 1)
        self.layers = nn.ModuleList()
        # What lies behind the deepest tap would learn nothing, and stop distributed training.
        for index in range(self._deepest + 1):
            dims, first = self.dims[index], sum(self.depths[:index])
            rates = (step * (first + i) for i in range(self.depths[index]))
            blocks = (
                VSSBlock(dims, norm_cfg=norm_cfg, drop_path_rate=r, **settings) for r in rates
            )
            stage = nn.ModuleDict(dict(blocks=nn.ModuleList(blocks)))
            if index < self._deepest:
                stage['downsample'] = build_downsample(
                    downsample, dims, self.dims[index + 1], norm_cfg
                )
            self.layers.append(stage)
        self._set_up_norms(norm_cfg, self.dims)
        self.reset_parameters()
        self._freeze_stages()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as published.

        Linear layers: truncated normal with standard deviation 0.02, bias 0; convolutions: torch's
        default; the rest as :meth:`mmvim.models.SS2D.reset_parameters` says.
        """
        check_whole(self)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self._reset_tokens()

    def _fit_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Refuse foreign keys, fit the position embedding, leave out what is not built."""
        if f'{prefix}patch_embed.0.weight' in state_dict:
            raise ValueError(
                f'{prefix}patch_embed.0.weight is a key of the published code: '
                "init_cfg=dict(type='mmvim.PretrainedVMamba', checkpoint=…) reads such files."
            )
        super()._fit_state_dict(state_dict, prefix, *args)
        self._skip_unbuilt(state_dict, prefix)

    def _unbuilt(self) -> list[str]:
        stages = range(self._deepest + 1, len(self.depths))
        last = [f'layers.{self._deepest}.downsample.'] if stages else []
        return [*last, *(f'layers.{i}.' for i in stages)]

    def _frozen_modules(self) -> list[nn.Module]:
        frozen = [self.patch_embed, *self.layers[: self.frozen_stages]]
        return frozen + (self._output_norms() if self.frozen_stages == len(self.depths) else [])

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the backbone.

        Args:
            x (torch.Tensor): Images of shape (B, in_channels, H, W).

        Returns:
            tuple[torch.Tensor, ...]: One tensor per tap, as ``out_type`` says.

        Raises:
            ValueError: If the shape does not fit.
        """
        stream = self._embed(x)
        dtype = stream.dtype
        taps: dict[int, torch.Tensor] = {}
        for index, stage in enumerate(cast(Iterable[nn.ModuleDict], self.layers)):
            stream = stream.to(torch.promote_types(stream.dtype, torch.float32))
            for block in cast(nn.ModuleList, stage['blocks']):
                stream = self._call(block, stream)
            if index in self.out_indices:
                taps[index] = stream
            if index < self._deepest:
                stream = stage['downsample'](stream)
        return tuple(self._output(taps[index], index, dtype) for index in self.out_indices)

    def _embed(self, image: torch.Tensor) -> torch.Tensor:
        """Image (B, C, H, W) in pixels -> map (B, H', W', D) with positions."""
        self._check_image(image)
        stream: torch.Tensor = self.patch_embed(image.permute(0, 2, 3, 1))
        if self.pos_embed is not None:
            grid = (stream.shape[1], stream.shape[2])
            position = resize_pos_embed(self.pos_embed, self.grid_size, grid, self.interpolate_mode)
            stream = stream + position.unflatten(1, grid)
        return stream

    def _output(self, tap: torch.Tensor, index: int, dtype: torch.dtype) -> torch.Tensor:
        """What is given for a tapped map (B, H, W, D)."""
        tokens = self._normalise(tap.flatten(1, 2), index, dtype)
        grid = (tap.shape[1], tap.shape[2])
        output: torch.Tensor = format_output(tokens, grid, self.out_type, 'none')
        return output

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter for layer-wise learning-rate decay.

        Args:
            param_name (str): Name of the parameter in the whole model.
            prefix (str): What the backbone's parameters start with there. Defaults to ''.

        Returns:
            tuple[int, int]: Depth (0 for patch and position embedding, i + 1 for block i of all
            stages, that of the stage's last block for what downsamples its map, the last for
            everything else, heads included) and the number of depths, ``num_layers + 2``.
        """
        num_depths = self.num_layers + 2
        part, *rest = param_name.removeprefix(prefix).split('.')
        if part in (*TOKENS, 'patch_embed') and param_name.startswith(prefix):
            return 0, num_depths
        if part == 'layers' and param_name.startswith(prefix):
            stage = int(rest[0])
            if rest[1] == 'downsample':
                return sum(self.depths[: stage + 1]), num_depths
            return sum(self.depths[:stage]) + int(rest[2]) + 1, num_depths
        return num_depths - 1, num_depths

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that must not decay beside those of at most one dimension.

        Returns:
            set[str]: Every ``A_logs``, bias of dt and position embedding; read by
            :class:`mmvim.engine.LayerDecayOptimWrapperConstructor`. (The published optimiser
            decays the first two.)
        """
        return self._no_decay(('A_logs', 'dt_projs_bias'))


def dims_of_stages(dims: int | Sequence[int], num_stages: int) -> tuple[int, ...]:
    """Channels of every stage, from those of the first or of all."""
    if isinstance(dims, int):
        return tuple(dims * 2**i for i in range(num_stages))
    if len(dims) != num_stages:
        raise ValueError(f"arch['dims']={dims!r} and 'depths' must be as long: {num_stages}.")
    return tuple(dims)
