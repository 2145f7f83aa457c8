"""Whole checkpoints converted, classifier included, with an account of every tensor."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch

from mmvim.checkpoints import vmamba
from mmvim.checkpoints.architectures import foreign_architecture
from mmvim.checkpoints.comparing import origins
from mmvim.checkpoints.keys import BACKBONE, Weights, by_module, split_backbone
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
from mmvim.errors import UsageError, UserError
from mmvim.models import VisionMamba, VMamba, VSSBlock
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
        notes (dict[str, str]): What no tensor tells: the ``cls_token`` of a Vim.
    """

    weights: dict[str, torch.Tensor]
    rows: list[Row]
    model: str
    notes: dict[str, str]


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
            embedding of a Vim is interpolated. Defaults to None, its own.
        head (bool): Whether the result is an ``ImageClassifier`` of mmpretrain, with the
            classifier, or the bare backbone. Defaults to True.

    Returns:
        Conversion: In our layout.

    Raises:
        UserError: If the file is of another architecture, is converted already, is not whole, has
            no classifier where one is wanted, or does not tell where its class token is.
    """
    if foreign_architecture(weights) == 'VMamba':
        _refuse_vim_options(cls_token, grid)
        return _vmamba_to_ours(weights, head)
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
    converted = _placed(ours, heads, head)
    about = _describe(model, cls_token, heads.get('head.fc.weight'))
    if stored not in (None, model.grid_size):
        about += f'; position embedding resized from {_by(stored)} (bicubic)'
    return Conversion(
        converted, _account(weights, converted, MADE_OF), about, dict(cls_token=cls_token)
    )


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
    if foreign_architecture(weights) == 'VMamba':
        _refuse_vim_options(cls_token)
        return _vmamba_to_published(weights, head)
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
    return Conversion(
        published, _account(weights, published, MADE_OF), about, dict(cls_token=cls_token)
    )


def _vmamba_to_ours(weights: Weights, head: bool) -> Conversion:
    """As :func:`published_to_ours`, of a VMamba."""
    own, _ = split_backbone(weights, vmamba.MARKS)
    if vmamba.OURS_MARK in own:
        raise UserError('nothing to convert: it has mmvim keys already')
    try:
        ours = vmamba.convert_vmamba(own)
    except ValueError as error:
        raise UserError(str(error)) from error
    model = vmamba.check_backbone(ours)
    found = ours.extras.items()
    heads = {vmamba.HEADS[key]: value for key, value in found if head and key in vmamba.HEADS}
    converted = _placed(ours, heads, head)
    about = _describe_vmamba(model, heads.get('head.fc.weight'))
    return Conversion(converted, _account(weights, converted, {}), about, {})


def _vmamba_to_published(weights: Weights, head: bool) -> Conversion:
    """As :func:`ours_to_published`, of a VMamba."""
    ours, rest = split_backbone(weights, vmamba.MARKS)
    if vmamba.OURS_MARK not in ours:
        raise UserError('nothing to convert: it has published keys already')
    try:
        published = vmamba.to_vmamba(ours)
    except ValueError as error:
        raise UserError(str(error)) from error
    model = vmamba.check_backbone(ours)
    published |= {old: rest[new] for old, new in vmamba.HEADS.items() if head and new in rest}
    about = _describe_vmamba(model, published.get('classifier.head.weight'))
    return Conversion(published, _account(weights, published, {}), about, {})


def _refuse_vim_options(cls_token: str | None, grid: tuple[int, int] | None = None) -> None:
    if cls_token is not None or grid is not None:
        raise UsageError(
            'it is of VMamba, which has no class token and no position embedding: leave '
            '--cls-token, --img-size and --patch-stride out'
        )


def _placed(
    backbone: Weights, heads: dict[str, torch.Tensor], head: bool
) -> dict[str, torch.Tensor]:
    """A bare backbone, or with its head an ``ImageClassifier`` of mmpretrain."""
    if head and 'head.fc.weight' not in heads:
        raise UserError(
            'the checkpoint has no linear classifier (head.weight): --backbone-only converts '
            'the backbone alone'
        )
    prefix = BACKBONE if head else ''
    return {prefix + key: value for key, value in backbone.items()} | heads


def _describe_vmamba(model: VMamba, head: torch.Tensor | None) -> str:
    def form(settings: Mapping[str, Any]) -> tuple[Any, ...]:
        """What two models of one architecture have in common."""
        ratio = settings.get('ssm_ratio', 1)
        return (settings['dims'], tuple(settings['depths']), ratio, settings.get('d_state', 1))

    mixer = cast(VSSBlock, model.get_submodule('layers.0.blocks.0')).op
    own = (model.dims[0], model.depths, mixer.inner_dims / model.dims[0], mixer.d_state)
    names = {form(settings): name for name, settings in model.arch_zoo.items()}
    depths, dims = (', '.join(map(str, sizes)) for sizes in (model.depths, model.dims))
    parts = [
        f'VMamba {names.get(own, "of its own size")}: {depths} blocks of {dims} channels',
        f'{mixer.d_state} {"state" if mixer.d_state == 1 else "states"}',
    ]
    parts += ['a norm per stage'] if model.out_norm == 'all' else []
    return ', '.join([*parts, *_classes(head, model.dims[-1])])


def _classes(head: torch.Tensor | None, embed_dims: int) -> list[str]:
    """The number of classes in words, none without a classifier."""
    if head is None:
        return []
    if head.ndim != 2 or head.shape[1] != embed_dims:
        raise UserError(
            f'the classifier is not whole: its weight of shape {tuple(head.shape)} should be '
            f'of shape (classes, {embed_dims})'
        )
    return [f'{len(head)} classes']


def _describe(model: VisionMamba, cls_token: str, head: torch.Tensor | None) -> str:
    sizes = {(a['embed_dims'], a['num_layers']): name for name, a in model.arch_zoo.items()}
    size = sizes.get((model.embed_dims, model.num_layers), 'of its own size')
    parts = [f'Vim {size}: {model.num_layers} blocks of {model.embed_dims} channels']
    if model.pos_embed is not None:
        parts.append(f'{_by(model.grid_size)} patches of {_by(model.patch_size)}')
    parts += [f'direction {model.direction}', f'class token {cls_token}']
    return ', '.join([*parts, *_classes(head, model.embed_dims)])


def _account(source: Weights, target: Weights, made_of: Mapping[str, Sequence[str]]) -> list[Row]:
    """What became of every tensor of the file, the same ones of all blocks together."""
    counts: Counter[Row] = Counter()
    left = dict(source)
    for key, names in origins(source, target, made_of).items():
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
    return re.sub(r'\b(layers|blocks)\.\d+\.', r'\1.*.', key)


def _by(pair: tuple[int, int]) -> str:
    return f'{pair[0]}×{pair[1]}'
