"""Checkpoints loaded into whole models: under the model's keys, converted, loudly."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.logging import MMLogger
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn

from mmvim.checkpoints.architectures import foreign_architecture
from mmvim.checkpoints.comparing import Misfits, load_and_compare
from mmvim.checkpoints.families import only_backbone
from mmvim.checkpoints.keys import BACKBONE, by_module, choose_copy, plain_key, prefixes
from mmvim.checkpoints.reading import weights_of
from mmvim.errors import UserError

Weights = dict[str, torch.Tensor]


def load_strictly(model: nn.Module, checkpoint: Mapping[str, Any], source: str) -> Weights:
    """Load weights, refusing a checkpoint that does not fit the model exactly.

    Args:
        model (nn.Module): May be wrapped for distributed runs or test-time augmentation. Its own
            hooks on loading (a position embedding that is resized) run as usual.
        checkpoint (Mapping): As :func:`mmvim.checkpoints.reading.read_checkpoint` returns it, of
            this model behind any prefix; of a Vim also under published keys.
        source (str): What to call the checkpoint in the message.

    Returns:
        dict[str, torch.Tensor]: The weights under the keys of the model.

    Raises:
        UserError: Counts and names the first missing, unexpected and mis-shaped keys.
    """
    model = _unwrapped(model)
    weights = under_keys_of(model, checkpoint, source)
    said = str(_load(model, weights, source))
    if said:
        raise UserError(
            f'{source} does not fit the {type(model).__name__} of this config: {said}; use the '
            'config it was trained with'
        )
    return weights


def load_start(model: nn.Module, checkpoint: Mapping[str, Any], source: str) -> Weights:
    """Load the weights that a training starts from, and log what is not loaded.

    A head may be left at its initial values. A backbone of ours has to be whole, but for what it
    has no use for; of another backbone at least one tensor has to be there.

    Args:
        model (nn.Module): See :func:`load_strictly`.
        checkpoint (Mapping): See :func:`load_strictly`.
        source (str): What to call the checkpoint in the message.

    Returns:
        dict[str, torch.Tensor]: All weights of the model after loading.

    Raises:
        UserError: If the backbone is not in the checkpoint, or one of ours in part.
    """
    model = _unwrapped(model)
    name = type(model).__name__
    weights = under_keys_of(model, checkpoint, source)
    ours = only_backbone(model)
    unused: list[str] = []
    initial: list[str] = []
    prefix, pretrained = '', 'Pretrained'
    if ours is not None:
        prefix, backbone, family = ours
        pretrained = family.pretrained
        unused = family.unused_keys(backbone, weights, prefix)
        initial = family.initial_keys(backbone, weights, prefix)
    weights = type(weights)((k, v) for k, v in weights.items() if k not in unused)
    own = model.state_dict()
    misfits = _load(model, weights, source)
    lost = {*misfits.missing, *misfits.shapes}
    said = '' if misfits.shapes else misfits.message
    if ours is not None:
        missing = [key for key in misfits.missing if key not in initial]
        said = str(misfits._replace(missing=missing).of(prefix))
    if said:
        raise UserError(
            f'{source} does not fit the backbone of this config: {said}; start from it by '
            f'init_cfg=dict(type={pretrained!r}, checkpoint=…) of the backbone, which can '
            'leave keys out (allow_missing, allow_unexpected) and adapt patch_embed'
        )
    logger = MMLogger.get_current_instance()
    logger.info(f'Loaded {len(own) - len(lost)} of {len(own)} tensors of the {name} from {source}.')
    for what, keys in (
        ('left at their initial values', misfits.missing),
        ('of another shape, left at their initial values', misfits.shapes),
        ('not used by this model', misfits.unexpected),
        ('not used by its backbone', [key.removeprefix(prefix) for key in unused]),
    ):
        if keys:
            logger.warning(f'{source}: {what}: {", ".join(by_module(keys))}.')
    return model.state_dict()


def _load(model: nn.Module, weights: Weights, source: str) -> Misfits:
    """Load what fits.

    Raises:
        UserError: If nothing of the backbone does, or a hook on loading cannot use what it finds.
    """
    name = type(model).__name__
    own = list(model.state_dict())
    backbone = [key for key in own if key.startswith(BACKBONE)]
    wanted = backbone or own
    try:
        misfits = load_and_compare(model, weights)
    except ValueError as error:
        raise UserError(f'{source} does not fit the {name}: {error}') from error
    if wanted and not any(key in weights and key not in misfits.shapes for key in wanted):
        kind = foreign_architecture(weights, own='')
        theirs = f'those of {kind}' if kind else f'{", ".join(list(weights)[:3])} …'
        raise UserError(
            f'{source} does not fit the {name} of this config: not one tensor of '
            f'{"its backbone" if backbone else "it"} is in the file, whose keys are {theirs}: '
            f'{misfits}'
        )
    return misfits


def under_keys_of(model: nn.Module, checkpoint: Mapping[str, Any], source: str) -> Weights:
    """The weights of a checkpoint under the keys of a model, published ones converted.

    Args:
        model (nn.Module): Not wrapped.
        checkpoint (Mapping): See :func:`load_strictly`.
        source (str): What to call the checkpoint in the message.

    Raises:
        UserError: If there are several models in it, or another architecture with the keys of our
            patch embedding.
    """
    weights: Weights = weights_of(checkpoint, source)
    keys = {plain_key(key): key for key in model.state_dict()}
    ours = only_backbone(model)
    if ours is not None and prefixes(weights, ours[2].marks):
        prefix, backbone, family = ours
        meta = checkpoint.get('meta')
        noted = meta.get('cls_token') if isinstance(meta, Mapping) else None
        own, rest = family.our_part(weights, source, backbone, noted)
        heads = {old: new for old, new in family.heads.items() if new in keys}
        found = {heads.get(key, key): value for key, value in rest.items()}
        found |= {plain_key(prefix + key): value for key, value in own.items()}
    else:
        placed = prefixes(weights, list(keys)[:1])
        prefix = choose_copy(placed, source) if placed and placed[0] else ''
        found = {key.removeprefix(prefix): value for key, value in weights.items()}
        if not keys.keys() & found.keys():
            found = {BACKBONE + key: value for key, value in found.items()}
    arranged = OrderedDict((keys.get(key, key), value) for key, value in found.items())
    if hasattr(weights, '_metadata'):
        arranged._metadata = weights._metadata  # type: ignore[attr-defined]
    return arranged


def _unwrapped(model: nn.Module) -> nn.Module:
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        assert isinstance(model.module, nn.Module)
        model = model.module
    return model
