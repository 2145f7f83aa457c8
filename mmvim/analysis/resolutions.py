"""A config's test at another image size: the sizes in its pipeline and of its windows replaced."""

from __future__ import annotations

import copy
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


def at_resolution(pipeline: Sequence[Any], size: int) -> list[Any]:
    """The pipeline for images of another size.

    The crop, or the short edge of the last resize, becomes ``size``; every other size of the
    pipeline is multiplied by the same ratio, so that a crop keeps its share of the image.

    Args:
        pipeline (Sequence[Any]): Transforms, as config; not changed.
        size (int): In pixels.

    Raises:
        UserError: See :func:`resolution`.
    """
    before = resolution(pipeline)
    steps = [copy.deepcopy(step) for step in pipeline]
    _scale_steps(steps, size, before)
    return steps


def set_resolution(cfg: Config, size: int, path: str) -> list[str]:
    """Turn a config into that of the same test on images of another size, in place.

    Beside the pipeline these grow with it: window and stride of a sliding test, and the size to
    which the data preprocessor pads.

    Args:
        cfg (Config): Config of a classifier or a segmentor.
        size (int): In pixels, see :func:`at_resolution`.
        path (str): The config's file, for the message.

    Returns:
        list[str]: What was changed, for people.

    Raises:
        UserError: If it is of another task, or its pipeline cannot be changed.
    """
    scope = cfg.get('default_scope')
    if scope not in _SCOPES:
        raise UserError(
            f'{path} has default_scope={scope!r}: sizes are replaced for classification and '
            f'segmentation alone ({", ".join(_SCOPES)})'
        )
    owner = pipeline_owner(cfg.test_dataloader.dataset, f'testing {path} at other sizes')
    try:
        before = resolution(owner.pipeline)
    except UserError as error:
        raise UserError(f'{path}: {error}') from error
    said = _scale_steps(owner.pipeline, size, before)
    test_cfg = cfg.model.get('test_cfg') or {}
    if test_cfg.get('mode') == 'slide':
        said += _scale_in(test_cfg, ('crop_size', 'stride'), size, before, 'model.test_cfg')
    for holder in (cfg, cfg.model):
        padding = (holder.get('data_preprocessor') or {}).get('test_cfg') or {}
        said += _scale_in(padding, ('size',), size, before, 'data_preprocessor.test_cfg')
    return said


def _scaled(value: Any, size: int, before: int) -> Any:
    """A size or several, times ``size / before``, rounded."""
    if isinstance(value, int):
        return round(value * size / before)
    return tuple(round(entry * size / before) for entry in value)


def _scale_in(node: Any, keys: Sequence[str], size: int, before: int, where: str) -> list[str]:
    said = []
    for key in keys:
        if node.get(key) is not None:
            old, node[key] = node[key], _scaled(node[key], size, before)
            said.append(f'{where}.{key} {_text(old)} → {_text(node[key])}')
    return said


def _scale_steps(pipeline: Sequence[Any], size: int, before: int) -> list[str]:
    names = [(step, type_name(step)) for step in pipeline]
    scaled = (_scale_in(step, _SIZED.get(name, ()), size, before, name) for step, name in names)
    return [line for lines in scaled for line in lines]


def _text(value: Any) -> str:
    return str(value) if isinstance(value, int) else '×'.join(map(str, value))
