"""The backbones that benchmark_backbone.py compares: Vim of mmvim, DeiT of mmpretrain or timm."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Taps of the published dense models: after every quarter of the blocks.
_VIM_TAPS, _DEIT_TAPS = (5, 11, 17, 23), (2, 5, 8, 11)
# DeiT: depth and heads by size (arXiv 2012.12877, table 1).
DEIT_DEPTH = 12
DEIT_HEADS = {'tiny': 3, 'small': 6, 'base': 12}
DEIT_LIBRARIES = ('mmpretrain', 'timm')
MODELS = ('vim', 'deit-sdpa', 'deit-plain', 'vim-with-cp')
PATCH = 16


def installed_deit() -> str | None:
    """The library that DeiT is taken from, or None where none is installed."""
    return next((name for name in DEIT_LIBRARIES if importlib.util.find_spec(name)), None)


def plain_attention(query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0) -> Tensor:
    """Attention in three steps, as DeiT was published, with the whole score matrix in memory.

    Of (B, heads, L, C) each. The scale is applied to the queries, one pass over the scores less
    than in mmpretrain's own plain version, which also passes ``dropout_p``.
    """
    if dropout_p:
        raise ValueError(f'dropout_p={dropout_p}: the benchmark runs without dropout')
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # (B, heads, L, L)
    return scores.softmax(dim=-1) @ value


def score_bytes(size: str, batch: int, tokens: int, training: bool) -> int:
    """Least memory that plain attention takes for its scores, in float32, in bytes.

    Scores and probabilities of one layer; in training the probabilities of every layer stay.
    """
    one = 4 * batch * DEIT_HEADS[size] * tokens**2
    return one * (DEIT_DEPTH + 1 if training else 2)


class _TimmTaps(nn.Module):
    """A VisionTransformer of timm: (B, 3, H, W) -> four feature maps (B, D, H/16, W/16)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        taps = list(_DEIT_TAPS)
        return tuple(self.model.forward_intermediates(image, indices=taps, intermediates_only=True))


class WithNeck(nn.Module):
    """A backbone and UperNet's pyramid: (B, 3, H, W) -> maps at strides 4, 8, 16 and 32."""

    def __init__(self, backbone: nn.Module, embed_dims: int) -> None:
        super().__init__()
        from mmseg.models.necks.featurepyramid import Feature2Pyramid

        self.backbone = backbone
        self.neck = Feature2Pyramid(embed_dims, norm_cfg=dict(type='BN', requires_grad=True))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        levels: tuple[Tensor, ...] = self.neck(self.backbone(image))
        return levels


def build(
    name: str,
    size: str,
    resolution: int,
    with_neck: bool = False,
    scan_backend: str = 'auto',
    deit_library: str | None = None,
) -> nn.Module:
    """One of :data:`MODELS` with random weights, for square images of one resolution.

    Without a neck it ends in the normalised class token, as for classification; with one (mmseg's)
    it gives its four taps to the pyramid, Vim without a class token as dense models run it.
    """
    importlib.import_module('mmvim')  # first: it mends a torchvision that would fail to import
    if name.startswith('vim'):
        from mmvim.models import VisionMamba

        options: dict[str, Any] = dict(out_type='cls_token')
        if with_neck:
            options = dict(cls_token='none', out_norm='none', out_indices=_VIM_TAPS)
        options.update(with_cp=name == 'vim-with-cp', scan_backend=scan_backend)
        model: nn.Module = VisionMamba(size, img_size=resolution, **options)
    else:
        builders = {'mmpretrain': _mmpretrain_deit, 'timm': _timm_deit}
        builder = builders[deit_library or installed_deit() or DEIT_LIBRARIES[0]]
        model = builder(size, resolution, with_neck, name == 'deit-plain')
    return WithNeck(model, 64 * DEIT_HEADS[size]) if with_neck else model


def _mmpretrain_deit(size: str, resolution: int, taps: bool, plain: bool) -> nn.Module:
    from mmpretrain.models.backbones import VisionTransformer

    model: Any = VisionTransformer(
        f'deit-{size}',
        img_size=resolution,
        patch_size=PATCH,
        out_indices=_DEIT_TAPS if taps else -1,
        out_type='featmap' if taps else 'cls_token',
        final_norm=not taps,
    )
    # Drawn, as all weights: zeros would make the first layers' inputs special.
    nn.init.trunc_normal_(model.pos_embed, std=0.02)
    nn.init.trunc_normal_(model.cls_token, std=0.02)
    for layer in model.layers:
        attention = plain_attention if plain else F.scaled_dot_product_attention
        layer.attn.scaled_dot_product_attention = attention
    module: nn.Module = model
    return module


def _timm_deit(size: str, resolution: int, taps: bool, plain: bool) -> nn.Module:
    timm = importlib.import_module('timm')

    model: Any = timm.create_model(f'deit_{size}_patch16_224', img_size=resolution, num_classes=0)
    for block in model.blocks:
        block.attn.fused_attn = not plain
    module: nn.Module = _TimmTaps(model) if taps else model
    return module


def outputs_of(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Outputs of a backbone, always as a tuple."""
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)
