"""Samples that cannot be read, and masks that do not fit: an error that names the file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('mmseg')

from mmengine.dataset import RepeatDataset
from mmengine.registry import DATASETS, init_default_scope
from torch.utils.data import ConcatDataset, DataLoader

from mmvim.cli.run_tool import sentence
from mmvim.datasets.checked_loading import CheckedLoader, check_loading
from mmvim.errors import UserError

PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
HEAD = dict(num_classes=3, ignore_index=7)


def dataset(root: Path, **settings: Any) -> Any:
    """One image of 4 x 6 with its mask, checked."""
    init_default_scope('mmseg')
    built = DATASETS.build(
        dict(
            type='BaseSegDataset',
            data_root=str(root),
            img_suffix='.png',
            data_prefix=dict(img_path='images', seg_map_path='masks'),
            metainfo=dict(classes=('a', 'b', 'c'), palette=[[0, 0, 0]] * 3),
            pipeline=PIPELINE,
            **settings,
        )
    )
    return built


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    """The mask of an image that is all right."""
    for folder in ('images', 'masks'):
        (tmp_path / folder).mkdir()
    Image.new('RGB', (6, 4)).save(tmp_path / 'images' / 'x.png')
    Image.fromarray(np.array([[0, 1, 2, 7, 255, 0]] * 4, np.uint8)).save(tmp_path / 'masks/x.png')
    return tmp_path / 'masks' / 'x.png'


BAD = [
    (lambda mask: Image.new('L', (5, 4)).save(mask), r'has shape \(4, 5\), but its image'),
    (lambda mask: Image.new('RGB', (6, 4)).save(mask), r'has shape \(4, 6, 3\), but its image'),
    (lambda mask: Image.new('L', (6, 4), 3).save(mask), r'label 3 is outside the 3 classes'),
    (lambda mask: mask.write_bytes(b''), 'cannot be loaded'),
    (lambda mask: mask.write_bytes(mask.read_bytes()[:50]), 'cannot be loaded'),
    (lambda mask: mask.unlink(), r'cannot be loaded \(.*No such file'),
]


@pytest.mark.parametrize('spoil, words', BAD)
@pytest.mark.parametrize('workers', [0, 1])
def test_bad_masks_are_named(spoil: Any, words: str, workers: int, mask: Path) -> None:
    data = dataset(mask.parents[1])
    check_loading(data, dict(decode_head=[dict(), HEAD]))
    loader = DataLoader(data, num_workers=workers, collate_fn=list)
    assert len(list(loader)) == 1  # 7 and 255 are ignored
    spoil(mask)
    with pytest.raises(UserError, match=words) as error:
        list(loader)
    said = sentence(error.value)
    assert said.startswith(str(mask))
    assert 'Traceback' not in said


def test_bad_images_are_named(mask: Path) -> None:
    image = mask.parents[1] / 'images' / 'x.png'
    data = dataset(mask.parents[1])
    check_loading(data, dict(decode_head=HEAD))
    for content in (b'', b'no image', image.read_bytes()[:40]):
        image.write_bytes(content)
        with pytest.raises(UserError, match=r'images/x\.png cannot be loaded'):
            data[0]


def test_wrappers_are_opened_and_the_data_sets_own_ignored_label_counts(mask: Path) -> None:
    inner = dataset(mask.parents[1], ignore_index=9)
    Image.new('L', (6, 4), 9).save(mask)
    wrapped = ConcatDataset([RepeatDataset(inner, times=2)])
    check_loading(wrapped, dict(module=dict(decode_head=HEAD)))
    assert wrapped[1] is not None
    Image.new('L', (6, 4), 3).save(mask)
    with pytest.raises(UserError, match='label 3'):
        wrapped[1]


def test_one_channel_tells_two_classes(mask: Path) -> None:
    Image.new('L', (6, 4), 1).save(mask)
    data = dataset(mask.parents[1])
    check_loading(data, dict(decode_head=dict(num_classes=1)))
    assert data[0] is not None


def test_labels_of_whole_images() -> None:
    class LoadImage:
        def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
            return results

    load = CheckedLoader(LoadImage(), num_classes=2)
    for label in (1, [0, 1], np.int64(0)):
        assert load(dict(img_path='a.png', gt_label=label)) is not None
    with pytest.raises(UserError, match=r'a\.png: label 2 is outside the 2 classes'):
        load(dict(img_path='a.png', gt_label=2))


def test_other_errors_of_annotations_pass() -> None:
    class LoadAnnotations:
        def __call__(self, results: dict[str, Any]) -> None:
            raise KeyError('bbox')

    with pytest.raises(KeyError):
        CheckedLoader(LoadAnnotations())(dict(img_path='a.png'))
