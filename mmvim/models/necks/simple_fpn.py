"""The simple feature pyramid of ViTDet, for detectors and segmentors alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_norm_layer
from torch import nn

from mmvim.models.base_module import CheckedModule
from mmvim.registry import MODELS


@MODELS.register_module()
class SimpleFPN(CheckedModule):
    """A pyramid made of the last map alone, or of several maps of one stride.

    After `Exploring Plain Vision Transformer Backbones for Object Detection
    <https://arxiv.org/abs/2203.16527>`_ (Sec. 3 and Appendix A.2). Level i is resampled from
    ``patch_stride`` to ``out_strides[i]`` and goes through a 1x1 and a 3x3 convolution, each
    with its norm and without activation. One 2x2 transposed convolution doubles a map and halves
    its channels; between two of them stand a norm and a GELU. Max-pooling halves a map; a last
    odd row or column is kept. There are no lateral connections. Levels beyond ``out_strides``
    take every second cell of the one before, as FPN's do.

    With 16-pixel patches the factors are 4, 2, 1 and 1/2; a backbone of stride 8 gives the same
    output strides by 2, 1, 1/2 and 1/4.

    Args:
        in_channels (int | Sequence[int]): Channels of the one map that all levels are made from,
            or of as many maps as there are ``out_strides``, one for each.
        out_channels (int): Channels of every level. Defaults to 256.
        num_outs (int): Number of levels, at least as many as ``out_strides``. Defaults to 5.
        patch_stride (int): Stride of the input maps in pixels. Defaults to 16.
        out_strides (Sequence[int]): Strides of the levels that have weights, in pixels,
            ascending, each ``patch_stride`` times a power of two. Defaults to (4, 8, 16, 32).
        norm_cfg (dict, optional): Norm over the channels; None for biases instead. Name the
            scope of ours: mmcv looks types up in the model's library.
            Defaults to ``dict(type='mmvim.LN2d', eps=1e-6)``.
        init_cfg (dict, optional): Initialisation config of mmengine. Defaults to None: torch's
            own initialisation of each layer, as published.

    Raises:
        TypeError: If an argument does not exist; the message names the nearest one.
        ValueError: If numbers of channels, levels or strides do not fit each other.

    Example:
        >>> neck = SimpleFPN(in_channels=192, out_channels=64)
        >>> [tuple(level.shape) for level in neck((torch.rand(1, 192, 8, 12),))]
        [(1, 64, 32, 48), (1, 64, 16, 24), (1, 64, 8, 12), (1, 64, 4, 6), (1, 64, 2, 3)]
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        out_channels: int = 256,
        num_outs: int = 5,
        patch_stride: int = 16,
        out_strides: Sequence[int] = (4, 8, 16, 32),
        norm_cfg: dict[str, Any] | None = dict(type='mmvim.LN2d', eps=1e-6),
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.in_channels = [in_channels] if isinstance(in_channels, int) else list(in_channels)
        self.out_channels = out_channels
        self.num_outs = num_outs
        self.patch_stride = patch_stride
        self.out_strides = tuple(out_strides)
        steps = [_doublings(patch_stride, stride) for stride in self.out_strides]
        if not steps or steps != sorted(set(steps), reverse=True):
            raise ValueError(f'out_strides must ascend, got {out_strides!r}.')
        levels = f'{len(steps)}, the number of out_strides={self.out_strides}'
        if len(self.in_channels) not in (1, len(steps)):
            raise ValueError(
                f'in_channels must be of one map or of {levels}; got {len(self.in_channels)}: '
                f'{in_channels!r}.'
            )
        if num_outs < len(steps):
            raise ValueError(f'num_outs must be at least {levels}; got {num_outs}.')
        if min(*self.in_channels, out_channels) < 1:
            raise ValueError(
                f'channels must be positive, got in_channels={in_channels!r} and '
                f'out_channels={out_channels}.'
            )
        sources = self.in_channels * (len(steps) // len(self.in_channels))
        self.levels = nn.ModuleList(
            self._level(channels, step, norm_cfg) for channels, step in zip(sources, steps)
        )

    def _level(self, channels: int, step: int, norm_cfg: dict[str, Any] | None) -> nn.Sequential:
        """Layers of a level ``2**step`` times as wide and high as its input."""
        if channels % 2 ** max(step, 0):
            raise ValueError(
                f'to enlarge a map {2**step} times its channels are halved {step} times: '
                f'in_channels must be divisible by {2**step}, got {channels}.'
            )
        layers: list[nn.Module] = []
        for done in range(step):
            if done and norm_cfg:
                layers.append(build_norm_layer(norm_cfg, channels)[1])
            if done:
                layers.append(nn.GELU())
            layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, stride=2))
            channels //= 2
        # An odd last row or column is seen in the smaller map too.
        layers += [nn.MaxPool2d(2, stride=2, ceil_mode=True) for _ in range(-step)]
        for kernel_size in (1, 3):
            options = dict(padding=kernel_size // 2, norm_cfg=norm_cfg, act_cfg=None)
            conv = ConvModule(channels, self.out_channels, kernel_size, **options)
            # ConvModule draws for a ReLU that is not there; published is torch's own draw.
            conv.conv.reset_parameters()
            layers.append(conv)
            channels = self.out_channels
        return nn.Sequential(*layers)

    def forward(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Make the pyramid.

        Args:
            inputs (Sequence[torch.Tensor]): One map (B, C, H, W) of stride ``patch_stride``, or
                one for each level, as ``in_channels`` has it.

        Returns:
            tuple[torch.Tensor, ...]: ``num_outs`` maps (B, out_channels, H_i, W_i), contiguous.

        Raises:
            ValueError: If number or channels of the inputs differ from ``in_channels``.
        """
        given = [tuple(getattr(x, 'shape', ())) for x in inputs]
        if [shape[1] if len(shape) == 4 else None for shape in given] != self.in_channels:
            raise ValueError(
                f'SimpleFPN was built for {len(self.in_channels)} map(s) (B, C, H, W) with '
                f'C={self.in_channels}; got {len(given)} of shapes {given}. in_channels must list '
                'the channels of the backbone, out_indices of the backbone as many taps.'
            )
        sources = list(inputs) * (len(self.levels) // len(inputs))
        # RoIAlign's kernels read memory as (B, C, H, W), whatever the strides say.
        outs = [level(x).contiguous() for level, x in zip(self.levels, sources)]
        while len(outs) < self.num_outs:
            outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        return tuple(outs)


def _doublings(source: int, target: int) -> int:
    """Number of doublings from a map of stride ``source`` to ``target``; negative: halvings."""
    for step in range(-8, 9):
        if source == target * 2.0**step:
            return step
    raise ValueError(
        f'out_strides must be patch_stride={source} times a power of two, such as '
        f'{source // 2 or 1}, {source} or {2 * source}; got {target}.'
    )
