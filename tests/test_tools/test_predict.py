"""tools/predict.py on pictures: what it writes and what it refuses."""

import errno
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mmcv.transforms import BaseTransform
from mmengine.fileio import LocalBackend
from mmengine.registry import TRANSFORMS
from PIL import Image

Run = Callable[..., Any]


def picture(path: Path, size: tuple[int, int] = (40, 28)) -> None:
    """A noisy picture of ``size`` (width, height)."""
    rng = np.random.default_rng(1)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(path)


def test_a_folder_of_pictures(run: Run, segmentation: Path, weights: Path) -> None:
    picture(Path('mine/a.jpg'))
    picture(Path('mine/b.PNG'), (33, 47))
    Path('mine/notes.txt').write_text('no picture')
    outcome = run('predict', segmentation, weights, 'mine', '--out', 'out')
    assert outcome.code == 0
    assert 'pictures: out (2)' in outcome.out
    assert 'labels: out/labels' in outcome.out
    assert sorted(path.name for path in Path('out').iterdir()) == ['a.png', 'b.png', 'labels']
    assert Image.open('out/b.png').size == (33, 47)
    label = np.asarray(Image.open('out/labels/b.png'))
    assert label.shape == (47, 33)
    assert label.dtype == np.uint8
    assert label.max() <= 2


def test_labels_equal_those_of_the_test_tool(run: Run, segmentation: Path, weights: Path) -> None:
    run('test', segmentation, weights, '--format-dir', 'tested', '--work-dir', 'w')
    run('predict', segmentation, weights, 'scenes/images', '--out', 'predicted')
    for index in range(4):
        tested = np.asarray(Image.open(f'tested/{index}.png'))
        assert np.array_equal(tested, np.asarray(Image.open(f'predicted/labels/{index}.png')))


def test_one_picture_into_the_home_folder(
    run: Run, segmentation: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('HOME', str(Path('home').absolute()))
    outcome = run('predict', segmentation, weights, 'scenes/images/1.png', '--out', '~/out')
    assert outcome.code == 0
    assert Path('home/out/1.png').is_file()


def test_pictures_that_share_a_stem(run: Run, segmentation: Path, weights: Path) -> None:
    picture(Path('mine/a.jpg'))
    picture(Path('mine/a.png'))
    assert run('predict', segmentation, weights, 'mine', '--out', 'out').code == 0
    names = sorted(path.name for path in Path('out').glob('*.png'))
    assert names == ['a.jpg.png', 'a.png.png']


def test_corrupt_pictures_are_named_and_the_others_done(
    run: Run, segmentation: Path, weights: Path
) -> None:
    picture(Path('mine/good.png'))
    whole = Path('mine/good.png').read_bytes()
    Path('mine/cut.png').write_bytes(whole[:100])
    Path('mine/empty.jpg').touch()
    outcome = run('predict', segmentation, weights, 'mine', '--out', 'out')
    assert outcome.code == 1
    assert outcome.sentence == (
        '2 of 3 pictures failed, mine/cut.png, mine/empty.jpg; the others are done'
    )
    assert 'mine/cut.png fails: mine/cut.png cannot be loaded (' in outcome.err
    assert 'pictures: out (1)' in outcome.out
    assert [path.name for path in Path('out').glob('*.png')] == ['good.png']

    alone = run('predict', segmentation, weights, 'mine/cut.png', '--out', 'out')
    assert alone.code == 1
    assert 'mine/cut.png cannot be loaded (failed to load image' in alone.sentence


def bomb(path: Path) -> None:
    """A small PNG file that promises more pixels than OpenCV accepts."""
    picture(path)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack('>II', 60000, 60000)
    data[29:33] = struct.pack('>I', zlib.crc32(data[12:29]))
    path.write_bytes(data)


@pytest.mark.parametrize('place', ['0', 'z'])
def test_odd_pictures_anywhere_in_a_folder(
    place: str, run: Run, segmentation: Path, weights: Path
) -> None:
    picture(Path('mine/good.png'))
    for size in ((1, 1), (128, 1), (1, 128), (20000, 1)):
        picture(Path(f'mine/{place}{size[0]}x{size[1]}.png'), size)
    bomb(Path(f'mine/{place}bomb.png'))
    Path(f'mine/{place}folder.png').mkdir()
    outcome = run('predict', segmentation, weights, 'mine', '--out', 'out')
    assert outcome.code == 1
    assert '5 of 6 pictures failed' in outcome.sentence
    for name in ('1x1', '128x1', '1x128', '20000x1', 'bomb'):
        assert f'mine/{place}{name}.png fails: ' in outcome.err
    assert [path.name for path in Path('out').glob('*.png')] == ['good.png']

    for name in ('1x1', '128x1'):
        alone = run('predict', segmentation, weights, f'mine/{place}{name}.png', '--out', 'out')
        assert alone.code == 1
        assert f'1 of 1 pictures failed, mine/{place}{name}.png: ' in alone.sentence


ODD_NAMES = ['a b', 'new\nline', "it's", '$x$', '100%', '#1', '-x', '[red]', 'ü', '\udcff', 'a.b']


def test_every_kind_of_picture(
    run: Run, segmentation: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modes, formats and names of all kinds; those that fail are named, the others done."""
    Path('mine/inner').mkdir(parents=True)
    rgb = Image.fromarray(np.random.default_rng(1).integers(0, 255, (28, 40, 3), dtype=np.uint8))
    for mode in ('1', 'L', 'LA', 'P', 'RGBA', 'I;16'):
        rgb.convert('L' if mode == 'I;16' else mode).convert(mode).save(f'mine/{mode}.png')
    for mode in ('CMYK', 'YCbCr'):
        rgb.convert(mode).save(f'mine/{mode}.jpg')
    rgb.save('mine/moving.gif', save_all=True, append_images=[rgb.rotate(90)])
    for name in ODD_NAMES:
        rgb.save(f'mine/{name}.bmp')
    rgb.save('mine/inner/deeper.png')
    bad = {'empty.png': b'', 'text.png': b'no picture', 'cut.jpg': b'\xff\xd8\xff\xe0'}
    for name, content in bad.items():
        Path('mine', name).write_bytes(content)
    Path('mine/nowhere.png').symlink_to('absent.png')
    rgb.save('mine/forbidden.png')
    load = LocalBackend.get

    def get(self: LocalBackend, filepath: str) -> bytes:
        if 'forbidden' in str(filepath):  # root may read everything
            raise PermissionError(errno.EACCES, 'Permission denied', str(filepath))
        return load(self, filepath)

    monkeypatch.setattr(LocalBackend, 'get', get)
    outcome = run('predict', segmentation, weights, 'mine', '--out', 'out')
    assert outcome.code == 1
    failed = ['cut.jpg', 'empty.png', 'forbidden.png', 'nowhere.png', 'text.png']
    names = ', '.join(f'mine/{name}' for name in failed)
    assert outcome.sentence == f'5 of 25 pictures failed, {names}; the others are done'
    good = {*ODD_NAMES, '1', 'L', 'LA', 'P', 'RGBA', 'I;16', 'CMYK', 'YCbCr', 'moving'}
    assert {path.stem for path in Path('out').glob('*.png')} == good
    assert {path.stem for path in Path('out/labels').iterdir()} == good


@TRANSFORMS.register_module()
class LoadBandsImage(BaseTransform):
    """Twelve float bands of a file that no library of pictures knows, as GDAL would."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        image = np.load(results['img_path']).astype(np.float32)
        return dict(results, img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])


UNCHANGED = dict(type='LoadImageFromFile', color_type='unchanged')
LOADERS = {
    'float bands': (dict(type='LoadBandsImage'), 12),
    '16-bit bands': (UNCHANGED, 4),
    '16-bit grey': (UNCHANGED, 1),
    'float bands by tifffile': (dict(UNCHANGED, imdecode_backend='tifffile'), 5),
}


@pytest.mark.parametrize('kind', LOADERS)
def test_what_training_reads_is_read(run: Run, segmentation: Path, kind: str) -> None:
    """Bands and ranges beyond those of pictures, from training to every tool that draws."""
    loader, channels = LOADERS[kind]
    if kind == 'float bands by tifffile':
        pytest.importorskip('tifffile')
    text = segmentation.read_text()
    text = text.replace("dict(type='LoadImageFromFile')", str(loader))
    text = text.replace('[127.0] * 3, std=[60.0] * 3, bgr_to_rgb=True', 'None, std=None')
    text = text.replace("type='ResNet',", f"type='ResNet', in_channels={channels},")
    segmentation.write_text(text.replace("img_suffix='.png'", "img_suffix='.tif'"))
    for number in range(4):
        Path(f'scenes/images/{number}.png').unlink()
        ramp = np.linspace(0, 1, 32 * 40).reshape(32, 40, 1)
        bands = ramp * np.linspace(0.5, 1, channels)  # reflectances: no shade of 8 bits
        with Path(f'scenes/images/{number}.tif').open('wb') as file:
            if 'tifffile' in kind:
                import tifffile

                tifffile.imwrite(file, bands.astype(np.float32))
            elif 'float' in kind:
                np.save(file, bands)
            else:
                file.write(cv2.imencode('.tif', (4000 * bands).astype(np.uint16))[1].tobytes())
    assert run('train', segmentation, '--work-dir', 'w').code == 0
    common = (segmentation, 'w/iter_2.pth', 'scenes/images', '--out')
    outcome = run('predict', *common, 'predicted')
    assert outcome.code == 0, outcome.err
    option = ('--cfg-options', 'visualizer.alpha=0.0')
    assert run('browse_dataset', segmentation, '--out', 'browsed', *option).code == 0
    assert run('predict', *common, 'predicted', *option).code == 0
    outcome = run('analysis_tools/visualize', *common, 'seen', '--what', 'taps')
    assert outcome.code == 0, outcome.err
    for place in ('predicted/2.png', 'browsed/000002.png'):
        shown = np.asarray(Image.open(place).convert('L')).astype(int)
        assert shown.min() < 5 and shown.max() > 250 and 100 < np.median(shown) < 155, place
    assert len(list(Path('seen/taps').iterdir())) == 4


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs /dev/full')
def test_a_full_disk_ends_it_at_once(run: Run, segmentation: Path, weights: Path) -> None:
    Path('out/labels').mkdir(parents=True)
    for index in range(4):
        Path(f'out/labels/{index}.png').symlink_to('/dev/full')
    outcome = run('predict', segmentation, weights, 'scenes/images', '--out', 'out')
    assert outcome.code == 1
    assert outcome.sentence == '[Errno 28] No space left on device'


def test_never_overwrites_its_input(run: Run, segmentation: Path, weights: Path) -> None:
    picture(Path('mine/a.png'))
    before = Path('mine/a.png').read_bytes()
    sentence = run('predict', segmentation, weights, 'mine', '--out', 'mine').sentence
    assert '--out mine would overwrite mine/a.png' in sentence
    Path('tree/labels').mkdir(parents=True)
    picture(Path('tree/labels/a.png'))
    sentence = run('predict', segmentation, weights, 'tree/labels', '--out', 'tree').sentence
    assert 'would overwrite tree/labels/a.png' in sentence
    assert Path('mine/a.png').read_bytes() == before


@pytest.mark.parametrize(
    ('place', 'complaint'),
    [
        ('absent', 'absent is neither an image nor a folder'),
        ('hollow', 'there is no image in hollow'),
    ],
)
def test_nothing_to_predict_on(
    run: Run, segmentation: Path, weights: Path, place: str, complaint: str
) -> None:
    Path('hollow').mkdir()
    outcome = run('predict', segmentation, weights, place, '--out', 'out')
    assert outcome.code == 1
    assert complaint in outcome.sentence


def test_device_that_is_not_there(run: Run, segmentation: Path, weights: Path) -> None:
    argv = ('scenes/images', '--out', 'out', '--device')
    assert (
        '--device cuda:99 cannot'
        in run('predict', segmentation, weights, *argv, 'cuda:99').sentence
    )
    assert (
        '--device gpu cannot be used'
        in run('predict', segmentation, weights, *argv, 'gpu').sentence
    )


def test_checkpoint_must_fit(run: Run, segmentation: Path, weights: Path) -> None:
    option = 'model.decode_head.num_classes=4'
    outcome = run(
        'predict', segmentation, weights, 'scenes/images', '--out', 'out', '--cfg-options', option
    )
    assert 'does not fit the EncoderDecoder' in outcome.sentence
    assert 'decode_head.conv_seg.weight: (3, 8, 1, 1) in the file, (4, 8, 1, 1)' in outcome.sentence


def test_needs_a_visualizer_that_draws(run: Run, segmentation: Path, weights: Path) -> None:
    argv = ('scenes/images', '--out', 'out', '--cfg-options')
    sentence = run('predict', segmentation, weights, *argv, 'visualizer=None').sentence
    assert 'has no visualizer' in sentence
    sentence = run('predict', segmentation, weights, *argv, 'visualizer.type=Visualizer').sentence
    assert 'Visualizer, cannot draw data samples' in sentence
