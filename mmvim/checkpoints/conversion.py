"""Whole checkpoints converted, classifier included, with an account of every tensor."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from mmvim.checkpoints.strict import by_module
from mmvim.checkpoints.vim import (
    BACKBONE,
    Weights,
    backbone_part,
    check_backbone,
    choose_cls_token,
    convert_official,
    is_published,
    our_key,
    to_official,
)
from mmvim.errors import UserError
from mmvim.models import VisionMamba
from mmvim.models.pos_embed import resize_pos_embed, square_grid
from mmvim.models.token_layout import cls_positions

# The linear classifier: as published, and in mmpretrain's ImageClassifier with LinearClsHead.
HEADS = {'head.weight': 'head.fc.weight', 'head.bias': 'head.fc.bias'}
_DROPPED = {
    'head.': 'dropped: the classifier',
    'rope.': 'dropped: constant tables, computed from the grid',
    'fpn': 'dropped: the pyramid of a dense model, here a neck of its own',
}


@dataclass(frozen=True)
class Row:
    """One line of the account: a tensor, or the same one of every block.

    Attributes:
        published (str): Its key in the published layout; '' where it has none.
        ours (str): Its key in ours; '' where it has none.
        tensors (int): How many there are.
        shape (str): Of the tensor, or of both sides.
        what (str): What became of it.
    """

    published: str
    ours: str
    tensors: int
    shape: str
    what: str


@dataclass(frozen=True)
class Conversion:
    """A converted checkpoint.

    Attributes:
        weights (dict[str, torch.Tensor]): The state dict.
        rows (list[Row]): Where each tensor came from and went.
        model (str): What the backbone is, for people.
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
        weights (Mapping[str, torch.Tensor]): Under published keys, with or without ``backbone.``
            before those of the backbone.
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
    own, rest = backbone_part(weights)
    if not is_published(own):
        raise UserError('nothing to convert: it has mmvim keys already')
    cls_token = choose_cls_token(own, cls_token, noted)
    resized = ''
    try:
        converted = convert_official(own, cls_token)
        ours = dict(converted)
        if 'pos_embed' in ours:
            stored = square_grid(ours['pos_embed'].shape[1])
            if grid is not None and grid != stored:
                resized = f'resized: grid {_by(stored)} → {_by(grid)}, bicubic'
                ours['pos_embed'] = resize_pos_embed(ours['pos_embed'], stored, grid)
            ours['pos_embed_grid'] = torch.tensor(grid or stored)
        elif grid is not None:
            raise UserError('the checkpoint has no position embedding to resize')
    except ValueError as error:
        raise UserError(str(error)) from error
    model = check_backbone(ours, cls_token)
    prefix, heads = '', {}
    if head:
        prefix = BACKBONE
        heads = {HEADS[key]: value for key, value in converted.extras.items() if key in HEADS}
        if HEADS['head.weight'] not in heads:
            raise UserError(
                'the checkpoint has no linear classifier (head.weight): --backbone-only converts '
                'the backbone alone'
            )
    rows = _pairs(own, ours, cls_token, prefix, resized, 'class row, kept apart')
    rows += _heads(converted.extras if head else {})
    if 'pos_embed' in ours:
        added = f'added: the grid {_by(model.grid_size)}'
        rows.append(Row('', f'{prefix}pos_embed_grid', 1, '(2)', added))
    left = {key: value for key, value in converted.extras.items() if HEADS.get(key) not in heads}
    rows += [Row(key, '', 1, _shape(value), _reason(key)) for key, value in left.items()]
    rows += [Row(name, '', count, shape, _reason(name)) for name, count, shape in _modules(rest)]
    about = _describe(model, cls_token, heads.get(HEADS['head.weight']))
    state = {prefix + key: value for key, value in ours.items()} | heads
    return Conversion(state, _by_block(rows), about, cls_token)


def ours_to_published(
    weights: Weights, cls_token: str | None = None, noted: object = None, head: bool = True
) -> Conversion:
    """Convert one of our checkpoints to the published layout.

    Args:
        weights (Mapping[str, torch.Tensor]): Of a model whose backbone is ours, or of the bare
            backbone.
        cls_token (str, optional): The class-token placement of the model. Defaults to None, for
            what the file notes or its tensors tell.
        noted (object): The ``cls_token`` of the file's ``meta``. Defaults to None.
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
    if is_published(ours):
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
    kept = {old: rest[new] for old, new in HEADS.items() if head and new in rest}
    prefix = BACKBONE if any(key.startswith(BACKBONE) for key in weights) else ''
    rows = _pairs(published, ours, cls_token, prefix, '', 'class row, put in its place')
    rows += _heads(kept)
    if 'pos_embed_grid' in ours:
        what = 'dropped: it is square, as the published code takes it to be'
        rows.append(Row('', f'{prefix}pos_embed_grid', 1, '(2)', what))
    left = {key: value for key, value in rest.items() if key not in [HEADS[old] for old in kept]}
    rows += [
        Row('', name, count, shape, 'dropped: no part of the published model')
        for name, count, shape in _modules(left)
    ]
    about = _describe(model, cls_token, kept.get('head.weight'))
    return Conversion(published | kept, _by_block(rows), about, cls_token)


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
                f'the classifier is not whole: its weight of shape {_shape(head)} should be of '
                f'shape (classes, {model.embed_dims})'
            )
        parts.append(f'{len(head)} classes')
    return ', '.join(parts)


def _heads(weights: Weights) -> list[Row]:
    """The linear classifier, under published keys."""
    return [
        Row(key, HEADS[key], 1, _shape(value), 'renamed')
        for key, value in weights.items()
        if key in HEADS
    ]


def _pairs(
    published: Weights, ours: Weights, cls_token: str, prefix: str, resized: str, moved: str
) -> list[Row]:
    """The tensors that stand in both layouts; ``moved`` is said of class rows."""
    rows = []
    for key, value in published.items():
        mine = our_key(key)
        if mine is None:
            continue
        what = 'as it is' if mine == key and not prefix else 'renamed'
        shape = _shape(value)
        if key == 'pos_embed':
            if ours[mine].shape != value.shape:
                shape = f'{shape} | {_shape(ours[mine])}'
            count = value.shape[1]
            classes = ours.get('cls_pos_embed')
            if classes is not None:
                which = cls_positions(cls_token, count - classes.shape[1])
                place = f'pos_embed, row {" and ".join(map(str, which))} of {count}'
                rows.append(Row(place, f'{prefix}cls_pos_embed', 1, _shape(classes), moved))
                what = 'the patch rows'
            what = resized or what
        rows.append(Row(key, prefix + mine, 1, shape, what))
    return rows


def _by_block(rows: list[Row]) -> list[Row]:
    """Rows that differ in the number of their block alone, as one."""
    groups: dict[tuple[str, str, str, str], int] = {}
    for row in rows:
        published, ours = (
            re.sub(r'\blayers\.\d+\.', 'layers.*.', key) for key in (row.published, row.ours)
        )
        group = (published, ours, row.shape, row.what)
        groups[group] = groups.get(group, 0) + row.tensors
    return [
        Row(published, ours, tensors, shape, what)
        for (published, ours, shape, what), tensors in groups.items()
    ]


def _modules(weights: Weights) -> Iterator[tuple[str, int, str]]:
    """Name, number of tensors and shape: of each, or of a whole module that has many."""
    for name, keys in by_module(weights).items():
        yield name, len(keys), _shape(weights[name]) if name in weights else 'several'


def _reason(key: str) -> str:
    return next(
        (reason for start, reason in _DROPPED.items() if key.startswith(start)),
        'dropped: no part of the classifier',
    )


def _shape(value: torch.Tensor) -> str:
    return f'({", ".join(map(str, value.shape))})'


def _by(pair: tuple[int, int]) -> str:
    return f'{pair[0]}×{pair[1]}'
