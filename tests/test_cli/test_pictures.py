"""Pictures found, read and gone through, whatever is wrong with some of them."""

import errno
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import init_default_scope
from PIL import Image

from mmvim.cli.pictures import each_picture, find_images, raise_failed, read_item, to_rgb
from mmvim.errors import UserError


def test_names_of_pictures(tmp_path: Path) -> None:
    for name in ('a.jpg', 'a.png', 'a.png.jpg', 'b.PNG', 'c.txt'):
        (tmp_path / name).touch()
    (tmp_path / 'folder.png').mkdir()
    (tmp_path / 'linked.png').symlink_to('folder.png')
    names = {path.name: name for path, name in find_images(str(tmp_path)).items()}
    full = ('a.jpg', 'a.png', 'a.png.jpg')
    assert names == {**{name: name for name in full}, 'b.PNG': 'b'}


LOAD = [dict(type='LoadImageFromFile')]


def test_pictures_that_cannot_be_read(tmp_path: Path) -> None:
    init_default_scope('mmengine')
    path = tmp_path / 'a.png'
    Image.new('RGB', (5, 4)).save(path)
    item, picture = read_item(LOAD, path)
    assert item['img'].shape == picture.shape == (4, 5, 3)
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(UserError, match=r'a\.png cannot be loaded \(failed to load image'):
        read_item(LOAD, path)
    with pytest.raises(UserError, match='cannot be loaded'):
        read_item(LOAD, tmp_path)
    bomb_file = tmp_path / 'bomb.png'
    Image.new('1', (20000, 20000)).save(bomb_file)  # some 50 kB on the disk, fit for OpenCV
    with pytest.raises(UserError, match=r'bomb\.png is not decoded: .*400000000 pixels'):
        read_item(LOAD, bomb_file)


IMAGES = [Path('a'), Path('b'), Path('c')]


@pytest.mark.parametrize('bad', [[0], [1], [2], [0, 2]])
@pytest.mark.parametrize('error', [ValueError('no patch'), TypeError('odd'), UserError('cut')])
def test_one_bad_picture_does_not_cost_the_others(
    bad: list[int], error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    done = []

    def work(image: Path) -> None:
        if IMAGES.index(image) in bad:
            raise error
        done.append(image)

    failed = each_picture(IMAGES, work, 'trying')
    assert done == [image for number, image in enumerate(IMAGES) if number not in bad]
    said = capsys.readouterr().err
    assert said.count(str(error)) == len(bad)
    names = ', '.join('abc'[number] for number in bad)
    with pytest.raises(UserError, match=f'{len(bad)} of 3 pictures failed, {names}.*others are'):
        raise_failed(failed, 3)


def test_a_bug_keeps_its_traceback() -> None:
    def work(image: Path) -> None:
        raise AttributeError('a bug')

    with pytest.raises(AttributeError, match='a bug'):
        raise_failed(each_picture(IMAGES, work, 'trying'), 3)
    raise_failed({}, 3)


def test_a_full_disk_ends_it() -> None:
    seen = []

    def work(image: Path) -> None:
        seen.append(image)
        raise OSError(errno.ENOSPC, 'No space left on device')

    with pytest.raises(OSError, match='No space'):
        each_picture(IMAGES, work, 'trying')
    assert seen == IMAGES[:1]


def test_packed_bgr_becomes_rgb() -> None:
    packed = np.zeros((2, 2, 3), np.uint8)
    packed[..., 0] = 200  # blue comes first
    assert to_rgb(packed, [dict(type='PackDetInputs')])[0, 0].tolist() == [0, 0, 200]
    for loader in (
        dict(type='LoadImageFromFile', imdecode_backend='tifffile'),
        dict(type='LoadSingleRSImageFromFile'),
    ):
        assert to_rgb(packed, [loader])[0, 0].tolist() == [200, 0, 0]


@pytest.mark.parametrize('rgb', [True, False])
def test_normalisation_is_undone(rgb: bool) -> None:
    mean, std = [120.0, 110.0, 100.0], [60.0, 50.0, 40.0]
    colour = np.array([250.0, 30.0, 90.0])
    packed = (colour - mean) / std
    image = to_rgb(
        packed.reshape(1, 1, 3), [dict(type='Normalize', mean=mean, std=std, to_rgb=rgb)]
    )
    assert image[0, 0].tolist() == (colour if rgb else colour[::-1]).tolist()


def test_jittered_pictures_are_shown_as_they_are() -> None:
    """mmdet's jitter makes floats below 0 and above 255: a dark picture stays dark."""
    dark = np.array([-40.0, 3, 3, 3, 300], np.float32).reshape(1, 5, 1)
    shown = to_rgb(dark, [dict(type='mmdet.PhotoMetricDistortion')])
    assert shown[0, :, 0].tolist() == [0, 3, 3, 3, 255]


@pytest.mark.parametrize('shape', [(2, 3), (2, 3, 1)])
def test_grey_is_shown_on_three_channels(shape: tuple[int, ...]) -> None:
    assert to_rgb(np.full(shape, 30.0), []).tolist() == np.full((2, 3, 3), 30).tolist()


@pytest.mark.parametrize('dtype', [np.uint16, np.int32, np.float32])
@pytest.mark.parametrize('channels', [1, 2, 3, 4, 12])
def test_other_ranges_are_stretched(dtype: type, channels: int) -> None:
    """Each channel by itself, over what 2 of 100 pixels at either end leave."""
    ramp = np.arange(100.0)[None, :, None] * (np.arange(channels) + 3)
    ramp = ramp / 1e4 if dtype is np.float32 else ramp + 1000
    if dtype is np.float32:
        ramp[0, 50, 0] = np.nan
    image = to_rgb(ramp.astype(dtype), [])
    assert image.shape == (1, 100, 3) and image.dtype == np.uint8
    whole = image[0, :, 1].astype(int)
    assert (np.diff(np.delete(whole, 50)) >= 0).all() and (whole[[0, 99]] == [0, 255]).all()
    assert abs(whole[75] - 255 * (75 - 1.98) / 95.04) < 2
    assert to_rgb(np.full((2, 2, 3), 7, dtype), []).shape == (2, 2, 3)
    turned = to_rgb(ramp.astype(dtype), [dict(type='LoadSingleRSImageFromFile')])
    assert turned.flags.c_contiguous and turned.flags.writeable  # OpenCV draws in it
