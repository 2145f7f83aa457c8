"""Do the channels of a config's backbone, neck and heads fit each other?

The libraries build the parts one by one, so that a wrong number shows in the first forward pass,
after the data were read. Read from the config it shows before anything is built.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmvim.errors import UserError
from mmvim.models import VisionMamba

# Extractors that hand the channels of the levels on as they are.
_EXTRACTORS = ('SingleRoIExtractor',)


def check_channels(model: Mapping[str, Any]) -> None:
    """Compare what each part of a model gives with what the next one takes.

    Looks at ``mmvim.VisionMamba``, at the neck and at the heads that name their ``in_channels``;
    says nothing about parts that name none.

    Args:
        model: The ``model`` of a config.

    Raises:
        UserError: If numbers differ; the message has both, and where they stand.
    """
    backbone, neck = model.get('backbone'), model.get('neck')
    if not isinstance(neck, Mapping):
        return
    given = _maps(backbone) if isinstance(backbone, Mapping) else None
    taken = neck.get('in_channels')
    if given is not None and taken is not None:
        taken = [taken] if isinstance(taken, int) else list(taken)
        if taken != given:
            raise UserError(
                f'model.backbone gives {_listed(given)}, but model.neck.in_channels says '
                f'{_listed(taken)}: make arch and out_indices of the backbone and in_channels of '
                'the neck agree'
            )
    levels = neck.get('out_channels')
    if not isinstance(levels, int):
        return
    for name, channels in _heads(model):
        if any(number != levels for number in channels):
            raise UserError(
                f'model.neck.out_channels is {levels}, but {name} is '
                f'{channels[0] if len(channels) == 1 else channels}: make them equal'
            )


def _maps(backbone: Mapping[str, Any]) -> list[int] | None:
    """Channels of each map of a Vision Mamba; None where the config does not tell."""
    if backbone.get('type') not in ('mmvim.VisionMamba', 'VisionMamba', VisionMamba):
        return None
    arch = backbone.get('arch', 'tiny')
    if isinstance(arch, str):
        arch = VisionMamba.arch_zoo.get(arch.lower(), {})
    width, indices = arch.get('embed_dims'), backbone.get('out_indices', -1)
    if not isinstance(width, int) or backbone.get('out_type', 'featmap') != 'featmap':
        return None
    return [width] * (len(indices) if isinstance(indices, Sequence) else 1)


def _heads(model: Mapping[str, Any]) -> Iterator[tuple[str, list[int]]]:
    """Name in the config and channels of everything that reads the levels of the neck."""
    for part, inner in model.items():
        if part == 'roi_head' and isinstance(inner, Mapping):
            for name, settings in inner.items():
                if name.endswith('head'):
                    yield from _channels(f'model.{part}.{name}', settings, 'in_channels')
                elif isinstance(settings, Mapping) and settings.get('type') in _EXTRACTORS:
                    yield from _channels(f'model.{part}.{name}', settings, 'out_channels')
        elif part.endswith('head'):
            yield from _channels(f'model.{part}', inner, 'in_channels')


def _channels(name: str, settings: Any, key: str) -> Iterator[tuple[str, list[int]]]:
    """The numbers under ``key`` of a part, or of each of a list of parts."""
    for place, one in enumerate(settings if isinstance(settings, Sequence) else [settings]):
        value = one.get(key) if isinstance(one, Mapping) else None
        if value is None:
            continue
        index = f'[{place}]' if isinstance(settings, Sequence) else ''
        numbers = [value] if isinstance(value, int) else list(value)
        yield f'{name}{index}.{key}', numbers


def _listed(channels: list[int]) -> str:
    return f'{len(channels)} map{"s" if len(channels) > 1 else ""} of {channels} channels'
