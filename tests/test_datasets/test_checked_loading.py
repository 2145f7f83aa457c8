"""Samples that cannot be read, and masks that do not fit: an error that names the file."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('mmseg')

from mmengine.dataset import RepeatDataset
from mmengine.registry import DATASETS, init_default_scope
from torch.utils.data import ConcatDataset, DataLoader

from mmvim.cli.run_tool import sentence
from mmvim.datasets.checked_loading import CheckedLoader, check_loading, check_loading_of_run, look
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


def first_look(root: Path, head: dict[str, Any], **settings: Any) -> None:
    for one, loader in check_loading(dataset(root, **settings), dict(decode_head=head)):
        look(one, loader)


def write_masks(root: Path, *labels: list[int]) -> None:
    """As many images of 4 x 6, their masks of these labels in turn."""
    for number, values in enumerate(labels):
        pixels = np.resize(np.array(values, np.uint8), (4, 6))
        Image.new('RGB', (6, 4)).save(root / 'images' / f'{number:03}.png')
        Image.fromarray(pixels).save(root / 'masks' / f'{number:03}.png')


TWO = dict(num_classes=2, ignore_index=255)


@pytest.mark.parametrize('labels', [[[0, 255]] * 3, [[0], [255]], [[0, 255]] * 40, [[255]]])
def test_masks_of_0_and_255_are_refused_before_the_run(labels: Any, mask: Path) -> None:
    mask.unlink()
    (mask.parents[1] / 'images' / 'x.png').unlink()
    write_masks(mask.parents[1], *labels)
    words = rf'masks/\d+\.png and {len(labels) - 1} more masks .*\[255\] is ignored: nothing could'
    with pytest.raises(UserError, match=words):
        first_look(mask.parents[1], TWO)


@pytest.mark.parametrize('labels', [[[0, 255]] * 60 + [[0, 1]], [[0]] * 3, [[0, 1]], [[0, 1, 255]]])
def test_masks_that_may_be_meant_pass(labels: Any, mask: Path) -> None:
    """Rare classes, data without any object, and proper ones."""
    write_masks(mask.parents[1], *labels)
    Image.new('L', (6, 4)).save(mask)
    first_look(mask.parents[1], TWO)


def test_a_label_out_of_range_is_found_before_the_run(mask: Path) -> None:
    write_masks(mask.parents[1], *[[0, 1]] * 7, [0, 2])
    Image.new('L', (6, 4)).save(mask)
    with pytest.raises(UserError, match=r'007\.png: label 2 is outside the 2 classes'):
        first_look(mask.parents[1], TWO)
    first_look(mask.parents[1], dict(num_classes=3))


def test_what_a_first_look_cannot_read_is_left_to_the_run(mask: Path) -> None:
    mask.unlink()
    first_look(mask.parents[1], TWO)


def test_every_label_of_whole_images_is_looked_at(tmp_path: Path) -> None:
    pytest.importorskip('mmpretrain')
    for name in 'abc':
        (tmp_path / name).mkdir()
        Image.new('RGB', (6, 4)).save(tmp_path / name / 'x.png')
    init_default_scope('mmpretrain')
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    built = DATASETS.build(dict(type='CustomDataset', data_root=str(tmp_path), pipeline=pipeline))
    ((one, loader),) = check_loading(built, dict(head=dict(num_classes=2)))
    with pytest.raises(UserError, match=r'c/x\.png: label 2 is outside the 2 classes'):
        look(one, loader)


def test_a_run_begins_with_the_look(mask: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new('L', (6, 4), 255).save(mask)
    data = dataset(mask.parents[1])
    model = dict(decode_head=HEAD)
    runner: Any = SimpleNamespace(
        build_dataloader=lambda _: DataLoader(data, collate_fn=list),
        cfg=SimpleNamespace(model=model),
    )
    check_loading_of_run(runner)
    with pytest.raises(UserError, match='nothing could be learnt'):
        runner.build_dataloader(dict(dataset=data))
