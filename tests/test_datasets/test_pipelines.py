"""Pipelines taken apart."""

import pytest

from mmvim.datasets.pipelines import (
    annotations_first,
    loading_only,
    pipeline_owner,
    type_name,
    without_annotations,
)
from mmvim.errors import UserError

STEPS = [
    dict(type='LoadImageFromFile'),
    dict(type='mmdet.Resize', scale=(4, 4)),
    dict(type='mmdet.LoadAnnotations', with_bbox=True),
    dict(type='LoadPanopticAnnotations'),
    dict(type='PackDetInputs'),
]


def names(steps: list[dict[str, object]]) -> list[str]:
    return [type_name(step) for step in steps]


def test_parts() -> None:
    assert names(without_annotations(STEPS)) == ['LoadImageFromFile', 'Resize', 'PackDetInputs']
    annotations = ['LoadAnnotations', 'LoadPanopticAnnotations']
    assert names(loading_only(STEPS)) == ['LoadImageFromFile', *annotations, 'PackDetInputs']
    first = ['LoadImageFromFile', *annotations, 'Resize', 'PackDetInputs']
    assert names(annotations_first(STEPS)) == first


def test_the_pipeline_inside_wrappers() -> None:
    inner = dict(type='A', pipeline=STEPS)
    for wrapped in (
        inner,
        dict(type='RepeatDataset', dataset=inner),
        dict(type='ConcatDataset', datasets=[inner]),
        dict(type='ClassBalanced', dataset=dict(type='RepeatDataset', dataset=inner)),
    ):
        assert pipeline_owner(wrapped, 'x') is inner
    with pytest.raises(UserError, match='drawing needs a pipeline'):
        pipeline_owner(dict(type='A'), 'drawing')
