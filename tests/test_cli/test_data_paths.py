"""Which data must be there before a run."""

from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from mmvim.cli.data_paths import check_data
from mmvim.errors import UserError


def config(**dataset: Any) -> Config:
    """A config with one training data set."""
    return Config(dict(train_dataloader=dict(dataset=dict(type='X', **dataset))))


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``root/images`` and ``root/list.txt``."""
    (tmp_path / 'root' / 'images').mkdir(parents=True)
    (tmp_path / 'root' / 'images' / 'a.png').touch()
    (tmp_path / 'root' / 'hollow').mkdir()
    (tmp_path / 'root' / 'list.txt').touch()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    'dataset',
    [
        dict(),
        dict(data_root='root', data_prefix=dict(img='images'), ann_file='list.txt'),
        dict(data_root='root', data_prefix='images'),
        dict(data_root='root', data_prefix='', ann_file=''),
        dict(data_root='root', data_prefix=dict(img_path='images', seg_map_path=None)),
        dict(data_root='root', data_prefix=dict(img_path='images'), img_suffix='.png'),
        dict(data_prefix='root/images'),
        dict(data_root='s3://bucket/x', ann_file='a.json'),
        dict(data_root='absent', backend_args=dict(backend='petrel')),
    ],
)
def test_data_that_is_there_or_elsewhere(dataset: dict[str, Any]) -> None:
    check_data(config(**dataset), ['train', 'val'])


@pytest.mark.parametrize(
    ('dataset', 'key'),
    [
        (dict(data_root='absent'), 'data_root'),
        (dict(data_root='root/list.txt'), 'data_root'),
        (dict(data_root='root', data_prefix='absent'), 'data_prefix'),
        (dict(data_root='root', data_prefix=dict(img='absent')), 'data_prefix.img'),
        (dict(data_root='root', ann_file='absent.json'), 'ann_file'),
        (dict(data_root='root', data_prefix='hollow'), 'data_prefix'),
        (
            dict(data_root='root', data_prefix=dict(img_path='images'), img_suffix='.jpg'),
            'data_prefix.img_path',
        ),
        (dict(type='RepeatDataset', dataset=dict(data_root='absent')), 'dataset.data_root'),
        (dict(datasets=[dict(), dict(data_root='absent')]), 'datasets.1.data_root'),
    ],
)
def test_data_that_is_missing(dataset: dict[str, Any], key: str) -> None:
    cfg = Config(dict(train_dataloader=dict(dataset=dataset)))
    with pytest.raises(UserError) as caught:
        check_data(cfg, ['train'])
    full = f'train_dataloader.dataset.{key}'
    assert str(caught.value).startswith(f'{full} is ')
    assert f'--cfg-options {full}=...' in str(caught.value)


@pytest.mark.parametrize(
    ('dataset', 'said'),
    [
        (
            dict(data_root='root', ann_file='a.json'),
            "'a.json', but {}/root/a.json does not exist "
            '(data_root holds hollow, images, list.txt): prepare the data',
        ),
        (dict(data_root='root/list.txt/'), 'root/list.txt is a file, and no folder: prepare'),
    ],
)
def test_a_data_root_of_another_kind(dataset: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        check_data(config(**dataset), ['train'])
    assert said.format(tmp_path) in str(caught.value)


def test_splits_that_are_not_in_use_are_not_checked() -> None:
    check_data(config(data_root='absent'), ['test'])
