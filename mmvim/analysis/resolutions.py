"""A config's test at another image size: the sizes in its pipeline and of its windows replaced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.config import Config

from mmvim.datasets.pipelines import pipeline_owner, type_name
from mmvim.errors import UserError

# Transforms that set the size, and the arguments that do.
_SIZED = {
    'Resize': ('scale',),
    'ResizeEdge': ('scale',),
    'ResizeShortestEdge': ('scale', 'max_size'),
    'CenterCrop': ('crop_size',),
}
# Arguments by which other transforms would.
_TELLING = (
    *('scale', 'scales', 'scale_factor', 'scale_range', 'ratio_range', 'max_size'),
    *('size', 'img_size', 'img_scale', 'crop_size', 'transforms'),
)
_SCOPES = ('mmpretrain', 'mmseg')


def resolution(pipeline: Sequence[Any]) -> int:
    """Image size that a test pipeline sets: the crop, or the short edge of the last resize.

    Args:
        pipeline (Sequence[Any]): Transforms, as config.

    Raises:
        UserError: If nothing sets a size, or something sets one in a way that cannot be replaced.
    """
    sizes = []
    for step in pipeline:
        name = type_name(step)
        arguments = [key for key in _TELLING if step.get(key) is not None]
        allowed = _SIZED.get(name, ())
        if arguments and not set(arguments) <= set(allowed):
            raise UserError(
                f'the test pipeline has {name}({", ".join(arguments)}), whose size cannot be '
                f'replaced: use {", ".join(_SIZED)} alone'
            )
        if allowed and arguments:
            size = step[allowed[0]]
            sizes.append(size if isinstance(size, int) else min(size))
    if not sizes:
        raise UserError(
            f'the test pipeline sets no image size ({", ".join(map(type_name, pipeline))}): it '
            f'needs one of {", ".join(_SIZED)}'
        )
    return sizes[-1]


def set_resolution(cfg: Config, size: int, path: str) -> list[str]:
    """Turn a config into that of the same test on images of another size, in place.

    The crop, or the short edge of the last resize, becomes ``size``. Every other size of the
    pipeline is multiplied by the same ratio, so that a crop keeps its share of the image; so are
    window and stride of a sliding test, and the size to which the data preprocessor pads.

    Args:
        cfg (Config): Config of a classifier or a segmentor.
        size (int): In pixels.
        path (str): The config's file, for the message.

    Returns:
        list[str]: The changes, for people.

    Raises:
        UserError: If it is of another task, or its pipeline cannot be changed.
    """
    scope = cfg.get('default_scope')
    if scope not in _SCOPES:
        raise UserError(
            f'{path} has default_scope={scope!r}: sizes are replaced for classification and '
            f'segmentation alone ({", ".join(_SCOPES)})'
        )
    pipeline = pipeline_owner(
        cfg.test_dataloader.dataset, f'testing {path} at other sizes'
    ).pipeline
    try:
        before = resolution(pipeline)
    except UserError as error:
        raise UserError(f'{path}: {error}') from error
    places = [(type_name(step), step, _SIZED.get(type_name(step), ())) for step in pipeline]
    test_cfg = cfg.model.get('test_cfg') or {}
    if test_cfg.get('mode') == 'slide':
        places.append(('model.test_cfg', test_cfg, ('crop_size', 'stride')))
    for holder in (cfg, cfg.model):
        padding = (holder.get('data_preprocessor') or {}).get('test_cfg') or {}
        places.append(('data_preprocessor.test_cfg', padding, ('size',)))
    said = []
    for where, node, keys in places:
        for key in keys:
            old = node.get(key)
            if old is not None:
                sides = [round(n * size / before) for n in ([old] if isinstance(old, int) else old)]
                node[key] = sides[0] if isinstance(old, int) else tuple(sides)
                given = str(old) if isinstance(old, int) else '×'.join(map(str, old))
                said.append(f'{where}.{key} {given} → {"×".join(map(str, sides))}')
    return said
