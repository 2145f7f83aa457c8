"""Keys of checkpoints: prefixes that wrappers put before them, and which of several models counts.

Pure functions. A file may hold a model behind any prefix (``module.``, ``teacher.``,
``model.backbone.``), and several copies of it. No list of prefixes is kept: a model is where its
keys are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import torch

from mmvim.errors import UserError

Weights = Mapping[str, torch.Tensor]

# Where the models of OpenMMLab have their backbone.
BACKBONE = 'backbone.'
# Modules that torch wraps around others: compile, FSDP, activation checkpointing.
_WRAPPERS = ('_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module')
# A module that has more keys is one item of a list.
_LISTED = 4


class BackboneWeights(dict[str, torch.Tensor]):
    """The backbone's state dict, made from a published checkpoint.

    Attributes:
        extras (dict[str, torch.Tensor]): What the file held beside the backbone, under its
            published keys: ``head.*`` for a classifier, ``fpn*`` and ``rope.*``.
    """

    def __init__(self, weights: Weights, extras: Weights) -> None:
        super().__init__(weights)
        self.extras = dict(extras)


def plain_key(key: str) -> str:
    """A key without the names of wrappers, and without a leading ``module.`` of a parallel one."""
    parts = [part for part in key.split('.') if part not in _WRAPPERS]
    while len(parts) > 1 and parts[0] == 'module':
        parts = parts[1:]
    return '.'.join(parts)


def choose_copy(names: Sequence[str], source: str) -> str:
    """The one of several copies of a model in a file that is meant.

    An average of the weights beside them (``ema``, ``model_ema``) gives way; of a teacher and a
    student neither does.

    Args:
        names (Sequence[str]): Of entries of the file, or prefixes of keys; at least one.
        source (str): What to call the file in the message.

    Raises:
        UserError: If it is not clear which.
    """
    plain = [name for name in names if 'ema' not in re.split(r'[._]', name)]
    names = plain if plain and len(names) > 1 else names
    if len(names) != 1:
        listed = ', '.join(name.rstrip('.') or '(no prefix)' for name in names)
        example = next(filter(None, names)).partition('.')[0]
        raise UserError(
            f'{source} holds {len(names)} models, under {listed}: say which by its name behind the '
            f'path, such as #{example}'
        )
    return names[0]


def prefixes(keys: Iterable[str], marks: Sequence[str]) -> list[str]:
    """What stands before those keys that end in one of the ``marks``, shortest first.

    Args:
        keys (Iterable[str]): Of a state dict.
        marks (Sequence[str]): Keys, or ends of keys, of the model that is looked for.
    """
    found = [
        key.removesuffix(mark)
        for key in keys
        for mark in marks
        if key == mark or key.endswith(f'.{mark}')
    ]
    return sorted(dict.fromkeys(found), key=len)


def split_backbone(
    weights: Weights, marks: Sequence[str]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The backbone's tensors under its own keys, and the others without what precedes the model.

    Args:
        weights (Mapping[str, torch.Tensor]): Of a backbone or of a whole model, behind any prefix.
        marks (Sequence[str]): Keys of the backbone; where there is none, all weights are its.

    Raises:
        UserError: If there are several backbones.
    """
    plain = {plain_key(key): value for key, value in weights.items()}
    found = prefixes(plain, marks)
    prefix = choose_copy(found, 'it') if found else ''
    model = prefix.removesuffix(BACKBONE)
    own = {k.removeprefix(prefix): v for k, v in plain.items() if k.startswith(prefix)}
    rest = {k.removeprefix(model): v for k, v in plain.items() if not k.startswith(prefix)}
    return own, rest


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
