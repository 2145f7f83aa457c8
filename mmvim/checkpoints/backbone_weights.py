"""What a state dict of the backbone says about its model, and whether it is whole."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from mmvim.errors import UserError
from mmvim.models import VisionMamba

_SHOWN = 3  # keys named for each kind of misfit
_BLOCK = re.compile(r'^layers\.(\d+)\.')


def check_backbone(weights: Mapping[str, torch.Tensor], cls_token: str) -> VisionMamba:
    """Compare a state dict with the backbone that its own shapes describe.

    Args:
        weights (Mapping[str, torch.Tensor]): State dict of a :class:`mmvim.models.VisionMamba`.
        cls_token (str): Its class-token placement.

    Returns:
        VisionMamba: That backbone, on the meta device.

    Raises:
        UserError: If tensors are missing, left over or of a shape that does not fit the others.
    """
    options = backbone_options(weights, cls_token)
    with torch.device('meta'):
        model = VisionMamba(**options)
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in weights.items()}
    misfits = {
        'missing': [key for key in wanted if key not in found and key != 'pos_embed_grid'],
        'unexpected': [key for key in found if key not in wanted],
        'of a shape that does not fit the others': [
            f'{key} {shape}' for key, shape in found.items() if wanted.get(key, shape) != shape
        ],
    }
    said = [f'{len(keys)} {kind} ({_first(keys)})' for kind, keys in misfits.items() if keys]
    if said:
        raise UserError(f'the backbone is not whole: {"; ".join(said)}')
    return model


def backbone_options(weights: Mapping[str, torch.Tensor], cls_token: str) -> dict[str, Any]:
    """Arguments of the :class:`mmvim.models.VisionMamba` that a state dict belongs to.

    ``img_size`` and ``patch_stride`` leave no trace but their grid; it is given here as that of
    patches side by side. The order of scans ('none', 'sequence', 'block', 'block_published') and
    rope leave none at all.

    Args:
        weights (Mapping[str, torch.Tensor]): State dict of the backbone.
        cls_token (str): Its class-token placement.

    Raises:
        UserError: If the tensors that tell are not there.
    """
    numbers = [int(found[1]) for key in weights if (found := _BLOCK.match(key))]
    telling = ['patch_embed.projection.weight']
    telling += [f'layers.0.mixer.{name}' for name in ('A_log', 'conv1d.weight', 'dt_proj.weight')]
    missing = [key for key in telling if key not in weights]
    if missing or not numbers:
        raise UserError(f'the backbone is not whole: {", ".join(missing) or "layers.*"} missing')
    embed_dims, in_channels, *patch_size = weights[telling[0]].shape
    A_log, conv, dt_proj = (weights[key] for key in telling[1:])
    norm = 'LN' if 'layers.0.norm.bias' in weights else 'RMSNorm'
    gamma = weights.get('layers.0.mixer.gamma')
    rows = weights.get('pos_embed')
    grid = (1, 1) if rows is None else pos_embed_grid(weights)
    return dict(
        arch=dict(
            embed_dims=embed_dims,
            num_layers=max(numbers) + 1,
            d_state=A_log.shape[1],
            d_conv=conv.shape[-1],
            expand=A_log.shape[0] // embed_dims,
            dt_rank=dt_proj.shape[1],
            conv_bias='layers.0.mixer.conv1d.bias' in weights,
            proj_bias='layers.0.mixer.in_proj.bias' in weights,
        ),
        img_size=tuple(cells * side for cells, side in zip(grid, patch_size)),
        patch_size=tuple(patch_size),
        in_channels=in_channels,
        direction=_direction(weights),
        cls_token=cls_token,
        pos_embed=rows is not None,
        out_norm='last' if 'norm_f.weight' in weights else 'none',
        norm_cfg=dict(type=norm),
        layer_scale_init=None if gamma is None else 1.0,
    )


def pos_embed_grid(weights: Mapping[str, torch.Tensor]) -> tuple[int, int]:
    """Grid of the position embedding's patch rows: the one stored beside them, else a square.

    Raises:
        UserError: If none is stored and the number of rows is no square.
    """
    stored = weights.get('pos_embed_grid')
    if stored is not None:
        return int(stored[0]), int(stored[1])
    rows = weights['pos_embed'].shape[1]
    side = round(rows**0.5)
    if side * side != rows:
        raise UserError(
            f'pos_embed has {rows} patch rows, which is no square grid: the class token is '
            'another one than declared, or the file is of another model'
        )
    return side, side


def _direction(weights: Mapping[str, torch.Tensor]) -> str:
    if 'layers.0.mixer.conv1d_b.weight' in weights:
        return 'ssm_conv'
    return 'ssm' if 'layers.0.mixer.A_b_log' in weights else 'none'


def _first(keys: list[str]) -> str:
    return ', '.join([*keys[:_SHOWN], *(['…'] if len(keys) > _SHOWN else [])])
