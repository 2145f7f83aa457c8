"""A state dict compared with a model, key by key."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from mmvim.errors import one_line

_SHOWN = 3  # keys named for each kind of misfit


class Misfits(NamedTuple):
    """What of a state dict does not fit a model, or of the model is not in the state dict.

    Attributes:
        missing (list[str]): Keys of the model alone.
        unexpected (list[str]): Keys of the state dict alone.
        shapes (dict[str, str]): Keys of both to the two shapes, where they differ.
        message (str): What torch says; '' where all fits but for the keys.
    """

    missing: list[str]
    unexpected: list[str]
    shapes: dict[str, str]
    message: str

    def of(self, prefix: str) -> Misfits:
        """Those whose keys begin with ``prefix``."""
        return Misfits(
            [key for key in self.missing if key.startswith(prefix)],
            [key for key in self.unexpected if key.startswith(prefix)],
            {key: said for key, said in self.shapes.items() if key.startswith(prefix)},
            '' if self.shapes else self.message,
        )

    def __str__(self) -> str:
        """Number and first names of each kind; '' where all fits."""
        kinds = {
            'missing': self.missing,
            'unexpected': self.unexpected,
            'of another shape': [f'{key}: {said}' for key, said in self.shapes.items()],
        }
        said = []
        for kind, names in kinds.items():
            few = ', '.join([*names[:_SHOWN], *(['…'] if len(names) > _SHOWN else [])])
            count = f'{len(names)} {"key" if len(names) == 1 else "keys"}'
            said += [f'{count} {kind} ({few})'] if names else []
        return '; '.join(said) or self.message


def load_and_compare(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> Misfits:
    """Load what fits and say what does not.

    Args:
        model (nn.Module): Its hooks on loading count: keys and shapes are compared after them.
        weights (Mapping[str, torch.Tensor]): A state dict.
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
    missing, unexpected = compared[0] if compared else ([], [])
    shapes = {
        key: f'{_by(weights[key])} in the file, {_by(own[key])} in the model'
        for key in own
        if f' {key}: ' in message
    }
    return Misfits(_counted(missing), _counted(unexpected), shapes, message)


def origins(
    source: Mapping[str, torch.Tensor],
    target: Mapping[str, torch.Tensor],
    made_of: Mapping[str, Collection[str]],
) -> dict[str, list[str]]:
    """Keys of the tensors of a file that the tensors of a result are, or are made of.

    Args:
        source (Mapping[str, torch.Tensor]): The file.
        target (Mapping[str, torch.Tensor]): The result.
        made_of (Mapping[str, Collection[str]]): Last names of tensors that are put together, to
            the last names of their parts.
    """
    left, found = dict(source), {}
    for key, value in target.items():
        parts = made_of.get(key.rpartition('.')[2], ())
        same = [name for name, own in left.items() if _is_same(own, value)][:1]
        found[key] = same or [name for name in source if name.rpartition('.')[2] in parts]
        for name in found[key]:
            left.pop(name, None)
    return found


def _is_same(tensor: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether a value is a tensor, perhaps in another shape."""
    return value is tensor or (value._base is tensor and value.numel() == tensor.numel())


def _counted(keys: Iterable[str]) -> list[str]:
    """Files older than torch 0.4.1 lack a counter of batches, and evaluation never reads it."""
    return [key for key in keys if not key.endswith('num_batches_tracked')]


def _by(value: torch.Tensor) -> str:
    return f'({", ".join(map(str, value.shape))})'
