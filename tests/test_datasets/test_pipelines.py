"""Pipelines taken apart, and packed pictures put right."""

import numpy as np
import pytest

from mmvim.cli.packed_images import to_rgb
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


def test_packed_bgr_becomes_rgb() -> None:
    packed = np.zeros((3, 2, 2), np.uint8)
    packed[0] = 200  # blue comes first
    assert to_rgb(packed, STEPS)[0, 0].tolist() == [0, 0, 200]


@pytest.mark.parametrize('rgb', [True, False])
def test_normalisation_is_undone(rgb: bool) -> None:
    mean, std = [120.0, 110.0, 100.0], [60.0, 50.0, 40.0]
    colour = np.array([250.0, 30.0, 90.0])
    packed = (colour - mean) / std
    image = to_rgb(
        packed.reshape(3, 1, 1).astype(np.float32),
        [dict(type='Normalize', mean=mean, std=std, to_rgb=rgb)],
    )
    assert image[0, 0].tolist() == (colour if rgb else colour[::-1]).tolist()


def test_grey_is_shown_on_three_channels() -> None:
    assert to_rgb(np.full((1, 2, 3), 300.0), []).tolist() == np.full((2, 3, 3), 255).tolist()
