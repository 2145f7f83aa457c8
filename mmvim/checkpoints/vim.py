"""Published Vim checkpoints: their keys and ours, both ways, and the model that a file is of.

The published position embedding is one table with the class rows where the class tokens sit;
ours keeps patch rows and class rows apart. All other tensors are only renamed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.logging import MMLogger

from mmvim.checkpoints.architectures import refuse_foreign
from mmvim.checkpoints.comparing import load_and_compare
from mmvim.checkpoints.keys import BackboneWeights, Weights, split_backbone
from mmvim.errors import UsageError, UserError
from mmvim.models import VisionMamba
from mmvim.models.arguments import check_choice
from mmvim.models.pos_embed import stored_grid
from mmvim.models.token_layout import CLS_TOKENS, insert_tokens, split_tokens

_PUBLISHED_PATCH, _OUR_PATCH = 'patch_embed.proj.', 'patch_embed.projection.'
# Keys that tell a published file from one of ours.
MARKS = PUBLISHED_MARK, OURS_MARK = f'{_PUBLISHED_PATCH}weight', f'{_OUR_PATCH}weight'
_KEPT_PREFIXES = ('layers.', 'norm_f.')
# What a published file holds beside the backbone: classifier, dense pyramid, constant tables.
_EXTRA_PREFIXES = ('head.', 'fpn', 'rope.')
# Class tokens -> their published keys, in the order of the sequence.
_CLS_KEYS: dict[str, tuple[str, ...]] = {
    'none': (),
    'head': ('cls_token',),
    'middle': ('cls_token',),
    'double': ('cls_token_head', 'cls_token_tail'),
}
_ALL_CLS_KEYS = ('cls_token', 'cls_token_head', 'cls_token_tail')
# The linear classifier: as published, and in mmpretrain's ImageClassifier with LinearClsHead.
HEADS = {'head.weight': 'head.fc.weight', 'head.bias': 'head.fc.bias'}
# Tensors of either layout that are put together from others.
MADE_OF = {
    'pos_embed': ('pos_embed', 'cls_pos_embed'),
    'cls_pos_embed': ('pos_embed',),
    'cls_token': ('cls_token', 'cls_token_head', 'cls_token_tail'),
    'cls_token_head': ('cls_token',),
    'cls_token_tail': ('cls_token',),
}
_BLOCK = re.compile(r'^layers\.(\d+)\.')
# The tensors of our layout whose shapes tell the architecture, and how many axes they have.
_TELLING = {
    OURS_MARK: 4,
    'layers.0.mixer.A_log': 2,
    'layers.0.mixer.conv1d.weight': 3,
    'layers.0.mixer.dt_proj.weight': 2,
}


def convert_official(state_dict: Weights, cls_token: str = 'middle') -> BackboneWeights:
    """Give the backbone's state dict of a published checkpoint.

    Args:
        state_dict (Mapping[str, torch.Tensor]): The weights of a published checkpoint, behind any
            prefix, or the whole checkpoint with the weights under ``'model'``.
        cls_token (str): Where that checkpoint has its class token: 'none', 'head', 'middle' or
            'double'. It is declared because the file does not tell 'head' from 'middle'; every
            released model is 'middle'. Defaults to 'middle'.

    Returns:
        BackboneWeights: A dict that ``load_state_dict(..., strict=True)`` takes; the classifier
        and what else is no part of the backbone is kept apart in its ``extras``.

    Raises:
        UserError: If there are several models, or one of another architecture.
        ValueError: If the class tokens are not those declared, or a key is unknown.
    """
    check_choice('cls_token', cls_token, _CLS_KEYS)
    names = _CLS_KEYS[cls_token]
    nested = state_dict.get('model')
    state_dict, rest = split_backbone(nested if isinstance(nested, Mapping) else state_dict, MARKS)
    refuse_foreign(state_dict)
    found = tuple(key for key in _ALL_CLS_KEYS if key in state_dict)
    if found != names:
        raise ValueError(
            f'the checkpoint has the class tokens {list(found)}, but cls_token={cls_token!r} '
            f'means {list(names)}: declare the placement that it was trained with.'
        )
    _check_token_tables(state_dict)
    weights: dict[str, torch.Tensor] = {}
    extras: dict[str, torch.Tensor] = {}
    unknown: list[str] = []
    for key, value in state_dict.items():
        if key == 'pos_embed':
            weights['pos_embed'], rows = split_tokens(value, cls_token)
            weights |= {'cls_pos_embed': rows} if found else {}
        elif key in found:
            weights['cls_token'] = torch.cat([state_dict[name] for name in found], dim=1)
        elif key.startswith((_PUBLISHED_PATCH, *_KEPT_PREFIXES)):
            weights[key.replace(_PUBLISHED_PATCH, _OUR_PATCH)] = value
        elif key.startswith(_EXTRA_PREFIXES):
            extras[key] = value
        else:
            unknown.append(key)
    if unknown:
        raise ValueError(
            f'{len(unknown)} keys do not belong to a published Vim checkpoint: '
            f'{unknown[:5]}{" …" if len(unknown) > 5 else ""}. Expected patch_embed.proj.*, '
            'layers.*, norm_f.*, cls_token*, pos_embed and head.*.'
        )
    return BackboneWeights(weights, extras | rest)


def to_official(state_dict: Weights, cls_token: str = 'middle') -> dict[str, torch.Tensor]:
    """Give the published keys of a backbone's state dict: the way back.

    Args:
        state_dict (Mapping[str, torch.Tensor]): State dict of a ``VisionMamba``, behind any prefix,
            or what :func:`convert_official` returned, whose ``extras`` are put back.
        cls_token (str): The class-token placement of the model. Defaults to 'middle'.

    Returns:
        dict[str, torch.Tensor]: The weights under published keys.

    Raises:
        UserError: If there are several models, or one of another architecture.
        ValueError: If the class tokens are not those declared, or a key has no published name.
    """
    check_choice('cls_token', cls_token, _CLS_KEYS)
    names, extras = _CLS_KEYS[cls_token], getattr(state_dict, 'extras', {})
    state_dict, rest = split_backbone(state_dict, MARKS)
    refuse_foreign(state_dict)
    _check_token_tables(state_dict)
    tokens = state_dict.get('cls_token')
    count = 0 if tokens is None else tokens.shape[1]
    if count != len(names):
        raise ValueError(
            f'the state dict has {count} class tokens, cls_token={cls_token!r} means {len(names)}: '
            'declare the placement of this model.'
        )
    weights: dict[str, torch.Tensor] = {}
    unknown = list(rest)
    for key, value in state_dict.items():
        if key == 'cls_token':
            weights |= {name: value[:, i : i + 1] for i, name in enumerate(names)}
        elif key == 'pos_embed':
            weights[key] = insert_tokens(value, state_dict.get('cls_pos_embed'), cls_token)
        elif key.startswith((_OUR_PATCH, *_KEPT_PREFIXES)):
            weights[key.replace(_OUR_PATCH, _PUBLISHED_PATCH)] = value
        elif key not in ('cls_pos_embed', 'pos_embed_grid'):
            unknown.append(key)
    if unknown:
        raise ValueError(f'these keys have no published name: {unknown}.')
    return weights | extras


def backbone_part(
    weights: Weights,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The backbone's tensors under its own keys, and the others without what precedes the model.

    Args:
        weights (Mapping[str, torch.Tensor]): Of a backbone or of a whole model, behind any prefix.

    Raises:
        UserError: If there are several backbones, or none; another architecture is named.
    """
    own, rest = split_backbone(weights, MARKS)
    refuse_foreign(own)
    if PUBLISHED_MARK not in own and OURS_MARK not in own:
        raise UserError(
            f'no Vim checkpoint: it has neither {PUBLISHED_MARK} (a published file) nor '
            f'{OURS_MARK} (one of ours), but {", ".join(list(own)[:3])} …'
        )
    return own, rest


def our_part(
    weights: Weights,
    source: str,
    declared: str | None = None,
    noted: object = None,
    otherwise: str = 'middle',
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """As :func:`backbone_part`, the backbone converted where its keys are the published ones.

    Args:
        weights (Mapping[str, torch.Tensor]): Of a backbone or of a whole model, behind any prefix.
        source (str): What to call the file in the message.
        declared (str, optional): Placement of the class token of a published file. Defaults to
            None, see :func:`choose_cls_token`.
        noted (object): See there.
        otherwise (str): See there. Defaults to 'middle', as of every released model.

    Raises:
        UserError: If there is not one Vim, or the placement is not that of the file.
    """
    try:
        own, rest = backbone_part(weights)
        if PUBLISHED_MARK in own:
            cls_token = declared or choose_cls_token(own, None, noted, otherwise)
            converted = convert_official(own, cls_token)
            MMLogger.get_current_instance().info(
                f'{source}: converted from the published keys, class token {cls_token}.'
            )
            return converted, rest | converted.extras
    except (UserError, ValueError) as error:
        raise UserError(f'{source}: {error}') from error
    return own, rest


def choose_cls_token(
    weights: Weights, declared: str | None, noted: object, otherwise: str | None = None
) -> str:
    """The class-token placement of a backbone: as declared, as noted in the file, or as it must be.

    Args:
        weights (Mapping[str, torch.Tensor]): The backbone, under published keys or ours.
        declared (str | None): What the user says.
        noted (object): What the file says about itself, None for nothing.
        otherwise (str, optional): That of a single class token where nothing tells whether it is
            the first or the middle one. Defaults to None, an error.

    Raises:
        UserError: If the first two contradict each other, or nothing tells.
    """
    if noted is not None and noted not in tuple(CLS_TOKENS):  # it may be a list
        raise UserError(f'its meta has cls_token={noted!r}, which is none of {tuple(CLS_TOKENS)}')
    if None not in (declared, noted) and declared != noted:
        raise UserError(
            f'--cls-token {declared} contradicts the file, whose meta says {noted}: leave the '
            'option out'
        )
    if declared is not None or noted is not None:
        return declared or str(noted)
    token = weights.get('cls_token')
    if token is None:
        return 'double' if 'cls_token_head' in weights else 'none'
    if token.ndim == 3 and token.shape[1] == 2:
        return 'double'
    if otherwise is not None:
        return otherwise
    raise UsageError(
        'it has one class token, and no file tells where: give --cls-token middle, as for every '
        'released model, or --cls-token head'
    )


def unused_keys(model: VisionMamba, weights: Weights, prefix: str = '') -> list[str]:
    """Keys of a Vim's weights that a model has no use for, as it is built.

    Args:
        model (VisionMamba): Has no use for class tokens where it has none, for a final norm with
            ``out_norm='none'``, and for blocks that it does not build.
        weights (Mapping[str, torch.Tensor]): Under our keys.
        prefix (str): What these begin with. Defaults to ''.
    """
    absent = ['cls_token', 'cls_pos_embed'] if model.cls_token is None else []
    absent += ['norm_f.'] if model.out_norm == 'none' else []
    absent += [f'layers.{i}.' for i in range(len(model.layers), model.num_layers)]
    starts = tuple(prefix + name for name in absent)
    return [key for key in weights if key.startswith(starts)]


def check_backbone(weights: Weights, cls_token: str) -> VisionMamba:
    """Compare a state dict with the backbone that its own shapes describe.

    Args:
        weights (Mapping[str, torch.Tensor]): State dict of a :class:`mmvim.models.VisionMamba`.
        cls_token (str): Its class-token placement.

    Returns:
        VisionMamba: That backbone, on the meta device.

    Raises:
        UserError: If tensors are missing, left over or of a shape that does not fit the others.
    """
    # The grid is a table of numbers, and has been read; the rest is compared by its shape.
    shapes = {key: value.to('meta') for key, value in weights.items() if key != 'pos_embed_grid'}
    try:
        with torch.device('meta'):
            model = VisionMamba(**_backbone_options(weights), cls_token=cls_token)
        if model.pos_embed_grid is not None:
            model.pos_embed_grid = torch.tensor(model.grid_size)
        said = str(load_and_compare(model, shapes))
    except ValueError as error:
        raise UserError(str(error)) from error
    if said:
        raise UserError(f'the backbone is not whole: {said}')
    return model


def _backbone_options(weights: Weights) -> dict[str, Any]:
    """Arguments of the backbone that a state dict belongs to, but for its class tokens.

    ``img_size`` and ``patch_stride`` leave no trace but their grid; it is given here as that of
    patches side by side. The order of scans ('none', 'sequence', 'block', 'block_published') and
    rope leave none at all.

    Raises:
        UserError: If the tensors that tell are not there, or are of no use.
        ValueError: If the position embedding does not fit its grid.
    """
    for key, axes in _TELLING.items():
        if key not in weights:
            raise UserError(f'the backbone is not whole: {key} missing')
        if weights[key].ndim != axes or not weights[key].numel():
            raise UserError(
                f'the backbone is not whole: {key} of shape {tuple(weights[key].shape)} has not '
                f'{axes} axes with something in each'
            )
    last = max(int(found[1]) for key in weights if (found := _BLOCK.match(key)))
    if last >= len(weights):
        raise UserError(
            f'the backbone is not whole: it has a block {last} among {len(weights)} tensors'
        )
    patch, A_log, conv, dt_proj = (weights[key] for key in _TELLING)
    embed_dims, in_channels, *patch_size = patch.shape
    rows = weights.get('pos_embed')
    grid = (1, 1) if rows is None else stored_grid(weights.get('pos_embed_grid'), rows.shape[1])
    two_scans = 'layers.0.mixer.A_b_log' in weights
    two_convs = 'layers.0.mixer.conv1d_b.weight' in weights
    return dict(
        arch=dict(
            embed_dims=embed_dims,
            num_layers=last + 1,
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
        direction='ssm_conv' if two_convs else 'ssm' if two_scans else 'none',
        pos_embed=rows is not None,
        out_norm='last' if 'norm_f.weight' in weights else 'none',
        norm_cfg=dict(type='LN' if 'layers.0.norm.bias' in weights else 'RMSNorm'),
        layer_scale_init=1.0 if 'layers.0.mixer.gamma' in weights else None,
    )


def _check_token_tables(weights: Weights) -> None:
    """Raise ValueError unless tokens and position embedding are tables of one width."""
    keys = (*_ALL_CLS_KEYS, 'pos_embed', 'cls_pos_embed')
    tables = {key: weights[key] for key in keys if key in weights}
    valid = all(
        table.ndim == 3 and table.shape[0] == 1 and table.is_floating_point()
        for table in tables.values()
    )
    if not valid or len({table.shape[2] for table in tables.values()}) > 1:
        given = (f'{key} {tuple(table.shape)} of {table.dtype}' for key, table in tables.items())
        raise ValueError(
            'class tokens and position embedding must be floating-point tables of shape '
            f'(1, rows, embed_dims), got {", ".join(given)}.'
        )
