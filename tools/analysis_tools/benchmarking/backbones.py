"""The backbones that benchmark_backbone.py compares: ours, those of mmpretrain or timm, S4ND."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 16
EMBED_DIMS = {'tiny': 192, 'small': 384, 'base': 768}
# The released VMamba of each size for which the authors have dense models.
VMAMBAS = {'tiny': 'tiny_s1l8', 'small': 'small_s2l15', 'base': 'base_s2l15'}


def build(name: str, size: str, resolution: int, with_neck: bool = False) -> nn.Module:
    """One of :data:`CONTENDERS` with random weights.

    Without a neck it ends as for classification, in the normalised class token or last map, or
    their mean. With one it ends in maps at strides 4, 8, 16 and 32: those of a backbone of four
    stages, or UperNet's pyramid (of mmseg) on the four taps of one that is plain.
    """
    importlib.import_module('mmvim')  # first: it mends a torchvision that would fail to import
    model = CONTENDERS[name][1](size, resolution, with_neck)
    if not with_neck or name in HIERARCHICAL:
        return model
    from mmseg.models.necks.featurepyramid import Feature2Pyramid

    norm = dict(type='BN', requires_grad=True)
    return nn.Sequential(model, Feature2Pyramid(EMBED_DIMS[size], norm_cfg=norm))


def _vim(size: str, resolution: int, taps: bool, with_cp: bool = False) -> nn.Module:
    from mmvim.models import VisionMamba

    options: dict[str, Any] = dict(out_type='cls_token')
    if taps:  # as dense models run it
        options = dict(cls_token='none', out_norm='none', out_indices=(5, 11, 17, 23))
    model: nn.Module = VisionMamba(size, img_size=resolution, with_cp=with_cp, **options)
    return model


def _deit(size: str, resolution: int, taps: bool, plain: bool) -> nn.Module:
    if not importlib.util.find_spec('mmpretrain') and not taps:
        timm: Any = importlib.import_module('timm')
        model = timm.create_model(f'deit_{size}_patch16_224', img_size=resolution, num_classes=0)
        for block in model.blocks:
            block.attn.fused_attn = not plain
        return model  # type: ignore[no-any-return]
    from mmpretrain.models.backbones import VisionTransformer

    options = dict(out_type='featmap', out_indices=(2, 5, 8, 11)) if taps else {}
    model = VisionTransformer(f'deit-{size}', resolution, PATCH, final_norm=not taps, **options)
    # Drawn, as all weights: zeros would make the first layers' inputs special.
    nn.init.trunc_normal_(model.pos_embed, std=0.02)
    nn.init.trunc_normal_(model.cls_token, std=0.02)
    for layer in model.layers:
        attention = plain_attention if plain else F.scaled_dot_product_attention
        layer.attn.scaled_dot_product_attention = attention
    return model  # type: ignore[no-any-return]


class OneThread(nn.Module):
    """A model whose forward pass runs on one thread, whatever the others have."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Any:
        """That of the model."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return self.model(image)
        finally:
            torch.set_num_threads(threads)


def _vmamba(size: str, resolution: int, taps: bool, looped: bool = False) -> nn.Module:
    from mmvim.models import SS2D, VMamba

    options: dict[str, Any] = dict(out_indices=3, out_norm='last', out_type='avg_featmap')
    model: nn.Module = VMamba(VMAMBAS[size], **({} if taps else options))
    if looped:
        from benchmarking.published_vmamba import LoopedSS2D

        for module in model.modules():
            if type(module) is SS2D:
                module.__class__ = LoopedSS2D
    return model


def _s4nd(size: str, resolution: int, taps: bool) -> nn.Module:
    from benchmarking.s4nd import S4NDViT

    blocks = (2, 5, 8, 11) if taps else ()
    return S4NDViT(EMBED_DIMS[size], resolution // PATCH, PATCH, taps=blocks)


def _resnet(size: str, resolution: int, taps: bool, depth: int) -> nn.Module:
    from mmpretrain.models.backbones import ResNet

    model: nn.Module = ResNet(depth, out_indices=(0, 1, 2, 3) if taps else (3,))
    return model


def _of_mmpretrain(size: str, resolution: int, taps: bool, kind: str) -> nn.Module:
    backbones: Any = importlib.import_module('mmpretrain.models.backbones')
    options: dict[str, Any] = dict(out_indices=(0, 1, 2, 3)) if taps else {}
    if kind == 'SwinTransformer':  # maps smaller than a window are padded to one
        options |= dict(img_size=resolution, pad_small_map=True)
    elif taps:
        options['gap_before_final_norm'] = False
    model: nn.Module = getattr(backbones, kind)(size, **options)
    return model


def plain_attention(query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0) -> Tensor:
    """Attention in three steps, as DeiT was published, with the whole score matrix in memory.

    Of (B, heads, L, C) each. The scale is applied to the queries, one pass over the scores less
    than in mmpretrain's own plain version, which also passes ``dropout_p``: 0 here.
    """
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # (B, heads, L, L)
    return scores.softmax(dim=-1) @ value


# Title and builder of a row: size, resolution of the square images, and whether four feature maps
# are asked for in place of what a classifier reads, to a model with random weights.
CONTENDERS: dict[str, tuple[str, Callable[[str, int, bool], nn.Module]]] = {
    'vim': ('Vim', _vim),
    'vim-with-cp': ('Vim, blocks recomputed', partial(_vim, with_cp=True)),
    'vim-one-thread': ('Vim, one thread', lambda *case: OneThread(_vim(*case))),
    'deit': ('DeiT, SDPA', partial(_deit, plain=False)),
    'deit-plain': ('DeiT, plain attention', partial(_deit, plain=True)),
    'vmamba': ('VMamba', _vmamba),
    'vmamba-looped': ('VMamba, published torch algorithm', partial(_vmamba, looped=True)),
    'swin': ('Swin', partial(_of_mmpretrain, kind='SwinTransformer')),
    'convnext': ('ConvNeXt', partial(_of_mmpretrain, kind='ConvNeXt')),
    'resnet50': ('ResNet-50', partial(_resnet, depth=50)),  # at any size
    's4nd': ('S4ND-ViT', _s4nd),
}
# Those with four stages of their own.
HIERARCHICAL = ('vmamba', 'vmamba-looped', 'swin', 'convnext', 'resnet50')
