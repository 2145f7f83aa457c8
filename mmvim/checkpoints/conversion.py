"""Whole checkpoints converted, classifier included, with an account of every tensor."""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

import torch

from mmvim.checkpoints.comparing import origins
from mmvim.checkpoints.keys import BACKBONE, Weights, by_module
from mmvim.checkpoints.vim import (
    HEADS,
    MADE_OF,
    PUBLISHED_MARK,
    backbone_part,
    check_backbone,
    choose_cls_token,
    convert_official,
    to_official,
)
from mmvim.errors import UserError
from mmvim.models import VisionMamba
from mmvim.models.pos_embed import resize_pos_embed, stored_grid

DROPPED = 'dropped'


class Row(NamedTuple):
    """One line of the account: a tensor, or the same one of every block.

    Attributes:
        source (str): Its key in the file; '' for one that is added.
        target (str): Its key in the result; '' for one that is dropped.
        shape (str): Of the tensor; before and after where it changes.
        what (str): What became of it.
        tensors (int): How many there are.
    """

    source: str
    target: str
    shape: str
    what: str
    tensors: int = 1


class Conversion(NamedTuple):
    """A converted checkpoint.

    Attributes:
        weights (dict[str, torch.Tensor]): The state dict.
        rows (list[Row]): Where each tensor came from and went.
        model (str): The backbone, for people.
        cls_token (str): Its class-token placement.
    """

    weights: dict[str, torch.Tensor]
    rows: list[Row]
    model: str
    cls_token: str


def published_to_ours(
    weights: Weights,
    cls_token: str | None = None,
    noted: object = None,
    grid: tuple[int, int] | None = None,
    head: bool = True,
) -> Conversion:
    """Convert a published checkpoint.

    Args:
        weights (Mapping[str, torch.Tensor]): Under published keys, behind any prefix.
        cls_token (str, optional): See :func:`mmvim.checkpoints.convert_official`. Defaults to
            None, for what the file notes or its tensors tell.
        noted (object): The ``cls_token`` of the file's ``meta``. Defaults to None.
        grid (tuple[int, int], optional): Patch grid (rows, columns) to which the position
            embedding is interpolated. Defaults to None, its own.
        head (bool): Whether the result is an ``ImageClassifier`` of mmpretrain, with the
            classifier, or the bare backbone. Defaults to True.

    Returns:
        Conversion: In our layout.

    Raises:
        UserError: If the file is of another architecture, is converted already, is not whole, has
            no classifier where one is wanted, or does not tell where its class token is.
    """
    own = backbone_part(weights)[0]
    if PUBLISHED_MARK not in own:
        raise UserError('nothing to convert: it has mmvim keys already')
    cls_token = choose_cls_token(own, cls_token, noted)
    try:
        ours = convert_official(own, cls_token)
        stored = stored_grid(None, ours['pos_embed'].shape[1]) if 'pos_embed' in ours else None
        if stored is not None:
            ours['pos_embed'] = resize_pos_embed(ours['pos_embed'], stored, grid or stored)
            ours['pos_embed_grid'] = torch.tensor(grid or stored)
        elif grid is not None:
            raise UserError('the checkpoint has no position embedding to resize')
    except ValueError as error:
        raise UserError(str(error)) from error
    model = check_backbone(ours, cls_token)
    heads = {HEADS[key]: value for key, value in ours.extras.items() if head and key in HEADS}
    if head and 'head.fc.weight' not in heads:
        raise UserError(
            'the checkpoint has no linear classifier (head.weight): --backbone-only converts '
            'the backbone alone'
        )
    prefix = BACKBONE if head else ''
    converted = {prefix + key: value for key, value in ours.items()} | heads
    about = _describe(model, cls_token, heads.get('head.fc.weight'))
    if stored not in (None, model.grid_size):
        about += f'; position embedding resized from {_by(stored)} (bicubic)'
    return Conversion(converted, _account(weights, converted), about, cls_token)


def ours_to_published(
    weights: Weights, cls_token: str | None = None, noted: object = None, head: bool = True
) -> Conversion:
    """Convert one of our checkpoints to the published layout.

    Args:
        weights (Mapping[str, torch.Tensor]): Of a model whose backbone is ours, or of the bare
            backbone, behind any prefix.
        cls_token (str, optional): See :func:`published_to_ours`.
        noted (object): See there.
        head (bool): Whether to keep the linear classifier, where there is one.
            Defaults to True.

    Returns:
        Conversion: In the published layout.

    Raises:
        UserError: If the file is of another architecture, has published keys already, is not
            whole, holds what the published code has no place for, or does not tell where its class
            token is.
    """
    ours, rest = backbone_part(weights)
    if PUBLISHED_MARK in ours:
        raise UserError('nothing to convert: it has published keys already')
    cls_token = choose_cls_token(ours, cls_token, noted)
    try:
        published = to_official(ours, cls_token)
    except ValueError as error:
        raise UserError(str(error)) from error
    model = check_backbone(ours, cls_token)
    if 'pos_embed' in ours and model.grid_size[0] != model.grid_size[1]:
        raise UserError(
            f'the position embedding is for a grid of {_by(model.grid_size)}, and the published '
            'code knows square ones alone: convert a model of square img_size'
        )
    published |= {old: rest[new] for old, new in HEADS.items() if head and new in rest}
    about = _describe(model, cls_token, published.get('head.weight'))
    return Conversion(published, _account(weights, published), about, cls_token)


def _describe(model: VisionMamba, cls_token: str, head: torch.Tensor | None) -> str:
    sizes = {(a['embed_dims'], a['num_layers']): name for name, a in model.arch_zoo.items()}
    size = sizes.get((model.embed_dims, model.num_layers), 'of its own size')
    parts = [f'Vim {size}: {model.num_layers} blocks of {model.embed_dims} channels']
    if model.pos_embed is not None:
        parts.append(f'{_by(model.grid_size)} patches of {_by(model.patch_size)}')
    parts += [f'direction {model.direction}', f'class token {cls_token}']
    if head is not None:
        if head.ndim != 2 or head.shape[1] != model.embed_dims:
            raise UserError(
                f'the classifier is not whole: its weight of shape {tuple(head.shape)} should be '
                f'of shape (classes, {model.embed_dims})'
            )
        parts.append(f'{len(head)} classes')
    return ', '.join(parts)


def _account(source: Weights, target: Weights) -> list[Row]:
    """What became of every tensor of the file, the same ones of all blocks together."""
    counts: Counter[Row] = Counter()
    left = dict(source)
    for key, names in origins(source, target, MADE_OF).items():
        shape = before = str(tuple(target[key].shape))
        what = 'as it is' if names == [key] else 'renamed' if names else 'added'
        if names:
            before = str(tuple(source[names[0]].shape))
        if before != shape:
            shape, what = f'{before} → {shape}', 'changed'
        counts[Row(_by_block(', '.join(names)), _by_block(key), shape, what)] += 1
        for name in names:
            left.pop(name, None)
    rows = [row._replace(tensors=count) for row, count in counts.items()]
    for name, keys in by_module(left).items():
        shape = str(tuple(left[name].shape)) if name in left else 'several'
        rows.append(Row(name, '', shape, DROPPED, len(keys)))
    return rows


def _by_block(key: str) -> str:
    return re.sub(r'\blayers\.\d+\.', 'layers.*.', key)


def _by(pair: tuple[int, int]) -> str:
    return f'{pair[0]}×{pair[1]}'
