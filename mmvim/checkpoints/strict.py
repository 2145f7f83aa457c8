"""Weights compared with a model, key by key: what does not fit is an error that names it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn

from mmvim.checkpoints.reading import weights_of
from mmvim.errors import UserError, one_line

_SHOWN = 3  # keys named for each kind of misfit
# A module that has more keys is one item of a list.
_LISTED = 4


def load_strictly(model: nn.Module, checkpoint: Mapping[str, Any], source: str) -> None:
    """Load weights, refusing a checkpoint that does not fit the model exactly.

    Args:
        model (nn.Module): May be wrapped for distributed runs or test-time augmentation. Its own
            hooks on loading (a position embedding that is resized) run as usual.
        checkpoint (Mapping): As :func:`mmvim.checkpoints.reading.read_checkpoint` returns it.
        source (str): What to call the checkpoint in the message.

    Raises:
        UserError: Counts and names the first missing, unexpected and mis-shaped keys.
    """
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        assert isinstance(model.module, nn.Module)
        model = model.module
    name = type(model).__name__
    if isinstance(checkpoint.get('model'), Mapping):
        raise UserError(
            f"{source} does not fit the {name} of this config: its weights are under 'model', as "
            'in published Vim files: convert them with tools/model_converters/official_to_mmvim.py'
        )
    state = weights_of(checkpoint, source)
    try:
        said = load_and_compare(model, state)
    except ValueError as error:  # a hook on loading that cannot use what it finds
        raise UserError(f'{source} does not fit the {name}: {error}') from error
    if said:
        raise UserError(
            f'{source} does not fit the {name} of this config: {said}; use the config it was '
            'trained with'
        )


def load_and_compare(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> str:
    """Load what fits and say what does not.

    Args:
        model (nn.Module): Its hooks on loading count: keys and shapes are compared after them.
        weights (Mapping[str, torch.Tensor]): A state dict.

    Returns:
        str: Number and names of the missing, the unexpected and the mis-shaped; '' where all fits.
    """
    own = model.state_dict()
    compared: list[Any] = []
    # The two lists are complete before torch raises for a shape, as it sees it after the hooks.
    handle = model.register_load_state_dict_post_hook(lambda _, keys: compared.append(keys))
    message = ''
    try:
        model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        message = one_line(error)
    finally:
        handle.remove()
    kinds: dict[str, list[str]] = {}
    for keys in compared:
        kinds |= {'missing': keys.missing_keys, 'unexpected': keys.unexpected_keys}
    kinds['of another shape'] = [
        f'{key}: {_by(weights[key].shape)} in the file, {_by(own[key].shape)} in the model'
        for key in own
        if f' {key}: ' in message
    ]
    phrases = []
    for kind, found in kinds.items():
        # Files older than torch 0.4.1 lack this counter, and evaluation never reads it.
        names = [name for name in found if not name.endswith('num_batches_tracked')]
        if names:
            few = [*names[:_SHOWN], *(['…'] if len(names) > _SHOWN else [])]
            count = f'{len(names)} {"key" if len(names) == 1 else "keys"}'
            phrases.append(f'{count} {kind} ({", ".join(few)})')
    return '; '.join(phrases) or message


def by_module(keys: Iterable[str]) -> dict[str, list[str]]:
    """Group the keys of modules that have many, so that a decode head is one line.

    Args:
        keys (Iterable[str]): Of a state dict.

    Returns:
        dict[str, list[str]]: ``module.* (9 tensors)`` to its keys; a key of a module that has few,
        to itself.
    """
    modules: dict[str, list[str]] = {}
    for key in keys:
        modules.setdefault(key.split('.')[0], []).append(key)
    groups: dict[str, list[str]] = {}
    for module, own in modules.items():
        many = {f'{module}.* ({len(own)} tensors)': own}
        groups |= {key: [key] for key in own} if len(own) <= _LISTED else many
    return groups


def _by(shape: Sequence[int]) -> str:
    return f'({", ".join(map(str, shape))})'
