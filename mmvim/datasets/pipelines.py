"""The transforms of a data set, taken apart by what they do."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mmvim.errors import UserError

_IMAGE_LOADER = re.compile(r'^Load\w*Image\w*$')
_ANNOTATION_LOADER = re.compile(r'^Load\w*(Annotation|Proposal)\w*$')
_PACK = re.compile(r'^Pack\w+$')


def type_name(step: Any) -> str:
    """A transform's type without its scope; empty where it has none."""
    type_ = step.get('type', '') if isinstance(step, Mapping) else ''
    name = type_ if isinstance(type_, str) else getattr(type_, '__name__', '')
    return name.rpartition('.')[2]


def is_loader(step: Any, of: Literal['image', 'annotations']) -> bool:
    """Whether a transform reads the image, or the ground truth."""
    pattern = _IMAGE_LOADER if of == 'image' else _ANNOTATION_LOADER
    return pattern.match(type_name(step)) is not None


def pipeline_owner(dataset: Any, purpose: str) -> Any:
    """The data set with the pipeline, inside wrappers such as ``RepeatDataset``.

    Raises:
        UserError: If there is none.
    """
    while isinstance(dataset, Mapping):
        if dataset.get('pipeline'):
            return dataset
        inner = dataset.get('datasets')
        dataset = inner[0] if isinstance(inner, Sequence) and inner else dataset.get('dataset')
    raise UserError(f'{purpose} needs a pipeline in the data set of the config, but it has none')


def without_annotations(pipeline: Sequence[Any]) -> list[Any]:
    """The pipeline for a picture that has no ground truth."""
    return [step for step in pipeline if not is_loader(step, of='annotations')]


def annotations_first(pipeline: Sequence[Any]) -> list[Any]:
    """The pipeline with the ground truth read right after the image.

    Test pipelines read it after the resize, so that it keeps the size of the file: right for a
    metric, but not for drawing it over the resized image.
    """
    images = [step for step in pipeline if is_loader(step, of='image')]
    labels = [step for step in pipeline if is_loader(step, of='annotations')]
    rest = [step for step in pipeline if step not in images and step not in labels]
    return [*images, *labels, *rest]


def loading_only(pipeline: Sequence[Any]) -> list[Any]:
    """The pipeline without what changes the picture: loading and packing alone."""
    return [
        step
        for step in pipeline
        if is_loader(step, of='image')
        or is_loader(step, of='annotations')
        or _PACK.match(type_name(step))
    ]
