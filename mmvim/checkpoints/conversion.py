"""Whole checkpoints converted, classifier included, with an account of every tensor."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from mmvim.checkpoints.architectures import by_module, foreign_architecture
from mmvim.checkpoints.backbone_weights import check_backbone, pos_embed_grid
from mmvim.checkpoints.vim import (
    OURS_MARK,
    PUBLISHED_MARK,
    cls_rows,
    convert_official,
    our_key,
    to_official,
)
from mmvim.errors import UserError
from mmvim.models.pos_embed import resize_pos_embed

Weights = Mapping[str, torch.Tensor]

BACKBONE = 'backbone.'
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
        published: Its key in the published layout; '' where it has none.
        ours: Its key in ours; '' where it has none.
        tensors: How many there are.
        shape: Of the tensor, or of both sides.
        what: What became of it.
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
        weights: The state dict.
        rows: Where each tensor came from and went.
        model: What the backbone is, for people.
    """

    weights: dict[str, torch.Tensor]
    rows: list[Row]
    model: str


def published_to_ours(
    weights: Weights,
    cls_token: str = 'middle',
    grid: tuple[int, int] | None = None,
    head: bool = True,
) -> Conversion:
    """Convert a published checkpoint.

    Args:
        weights (Weights): Under published keys, with or without ``backbone.`` before those of
            the backbone.
        cls_token (str): See :func:`mmvim.checkpoints.convert_official`. Defaults to 'middle'.
        grid (tuple[int, int], optional): Patch grid (rows, columns) to which the position
            embedding is interpolated. Defaults to None, its own.
        head (bool): Whether the result is an ``ImageClassifier`` of mmpretrain, with the
            classifier, or the bare backbone. Defaults to True.

    Returns:
        Conversion: In our layout.

    Raises:
        UserError: If the file is of another architecture, is converted already, is not whole, or
            has no classifier where one is wanted.
    """
    own, rest = _split(weights)
    _check_layout(own, PUBLISHED_MARK, OURS_MARK, 'it has mmvim keys already')
    try:
        official = convert_official(own, cls_token)
    except ValueError as error:
        raise UserError(str(error)) from error
    ours = dict(official)
    resized = ''
    if 'pos_embed' in ours:
        stored = pos_embed_grid(ours)
        grid = grid or stored
        if grid != stored:
            resized = f'resized: grid {_by(stored)} → {_by(grid)}, bicubic'
            ours['pos_embed'] = resize_pos_embed(ours['pos_embed'], stored, grid)
        ours['pos_embed_grid'] = torch.tensor(grid)
    elif grid is not None:
        raise UserError('the checkpoint has no position embedding to resize')
    model = _describe(ours, cls_token)
    prefix, heads = '', {}
    if head:
        prefix = BACKBONE
        heads = {HEADS[key]: value for key, value in official.extras.items() if key in HEADS}
        if HEADS['head.weight'] not in heads:
            raise UserError(
                'the checkpoint has no linear classifier (head.weight): --backbone-only converts '
                'the backbone alone'
            )
        model += f', {len(heads[HEADS["head.weight"]])} classes'
    rows = _pairs(own, ours, cls_token, prefix, resized, 'class row, kept apart')
    rows += [
        Row(key, HEADS[key], 1, _shape(value), 'renamed')
        for key, value in official.extras.items()
        if head and key in HEADS
    ]
    if 'pos_embed_grid' in ours:
        added = f'added: the grid {_by(pos_embed_grid(ours))}'
        rows.append(Row('', f'{prefix}pos_embed_grid', 1, '(2)', added))
    left = {key: value for key, value in official.extras.items() if not (head and key in HEADS)}
    rows += [Row(key, '', 1, _shape(value), _reason(key)) for key, value in left.items()]
    rows += [Row(name, '', count, shape, _reason(name)) for name, count, shape in _modules(rest)]
    converted = {prefix + key: value for key, value in ours.items()} | heads
    return Conversion(converted, _by_block(rows), model)


def ours_to_published(weights: Weights, cls_token: str = 'middle', head: bool = True) -> Conversion:
    """Convert one of our checkpoints to the published layout.

    Args:
        weights (Weights): Of a model whose backbone is ours, or of the bare backbone.
        cls_token (str): The class-token placement of the model. Defaults to 'middle'.
        head (bool): Whether to keep the linear classifier, where there is one.
            Defaults to True.

    Returns:
        Conversion: In the published layout.

    Raises:
        UserError: If the file is of another architecture, has published keys already, is not
            whole, or holds what the published code has no place for.
    """
    ours, rest = _split(weights)
    _check_layout(ours, OURS_MARK, PUBLISHED_MARK, 'it has published keys already')
    try:
        published = to_official(ours, cls_token)
    except ValueError as error:
        raise UserError(str(error)) from error
    model = _describe(ours, cls_token)
    if 'pos_embed' in ours:
        rows, columns = pos_embed_grid(ours)
        if rows != columns:
            raise UserError(
                f'the position embedding is for a grid of {rows}x{columns}, and the published '
                'code knows square ones alone: convert a model of square img_size'
            )
    kept = {old: rest[new] for old, new in HEADS.items() if head and new in rest}
    prefix = BACKBONE if any(key.startswith(BACKBONE) for key in weights) else ''
    account = _pairs(published, ours, cls_token, prefix, '', 'class row, put in its place')
    account += [Row(key, HEADS[key], 1, _shape(value), 'renamed') for key, value in kept.items()]
    if 'pos_embed_grid' in ours:
        what = 'dropped: it is square, as the published code takes it to be'
        account.append(Row('', f'{prefix}pos_embed_grid', 1, '(2)', what))
    left = {key: value for key, value in rest.items() if key not in [HEADS[old] for old in kept]}
    account += [
        Row('', name, count, shape, 'dropped: no part of the published model')
        for name, count, shape in _modules(left)
    ]
    if kept:
        model += f', {len(kept["head.weight"])} classes'
    return Conversion(published | kept, _by_block(account), model)


def _split(weights: Weights) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The backbone's tensors without their prefix, and the others; all where there is none."""
    if not any(key.startswith(BACKBONE) for key in weights):
        return dict(weights), {}
    own = {k.removeprefix(BACKBONE): v for k, v in weights.items() if k.startswith(BACKBONE)}
    return own, {key: value for key, value in weights.items() if not key.startswith(BACKBONE)}


def _check_layout(own: Weights, wanted: str, other: str, already: str) -> None:
    name = foreign_architecture(own)
    if name is not None:
        raise UserError(f'no Vim checkpoint: its keys are those of {name}')
    if other in own:
        raise UserError(f'nothing to convert: {already} ({other})')
    if wanted not in own:
        raise UserError(f'no Vim checkpoint: it has no {wanted}, but {", ".join(list(own)[:3])} …')


def _describe(ours: Weights, cls_token: str) -> str:
    model = check_backbone(ours, cls_token)
    size = next(
        (
            name
            for name, arch in model.arch_zoo.items()
            if (arch['embed_dims'], arch['num_layers']) == (model.embed_dims, model.num_layers)
        ),
        'of its own size',
    )
    patch = _by((model.patch_size[0], model.patch_size[1]))
    parts = [f'Vim {size}: {model.num_layers} blocks of {model.embed_dims} channels']
    if model.pos_embed is not None:
        parts.append(f'{_by(model.grid_size)} patches of {patch}')
    return ', '.join([*parts, f'direction {model.direction}', f'class token {cls_token}'])


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
                which = cls_rows(cls_token, count - classes.shape[1])
                rows.append(
                    Row(
                        f'pos_embed, row {" and ".join(map(str, which))} of {count}',
                        f'{prefix}cls_pos_embed',
                        1,
                        _shape(classes),
                        moved,
                    )
                )
                what = 'the patch rows'
            what = resized or what
        rows.append(Row(key, prefix + mine, 1, shape, what))
    return rows


def _by_block(rows: list[Row]) -> list[Row]:
    """Rows that differ in the number of their block alone, as one."""
    groups: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        names = (re.sub(r'\blayers\.\d+\.', 'layers.*.', key) for key in (row.published, row.ours))
        published, ours = names
        groups.setdefault((published, ours, row.shape, row.what), []).append(row)
    return [
        Row(published, ours, sum(row.tensors for row in group), shape, what)
        for (published, ours, shape, what), group in groups.items()
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


def _by(grid: tuple[int, int]) -> str:
    return f'{grid[0]}×{grid[1]}'
