"""tools/dataset_converters on small files in the layouts of CamVid and of stage1_train."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from mmengine.registry import DATASETS
from PIL import Image
from pycocotools.coco import COCO
from repository import TOOLS, load_script

from mmvim.cli.run_tool import INTERRUPTED, run_tool
from mmvim.datasets.registered import CamVidDataset, NucleiDataset

CAMVID = load_script(TOOLS / 'dataset_converters' / 'camvid.py')
NUCLEI = load_script(TOOLS / 'dataset_converters' / 'nuclei.py')


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels.astype(np.uint8))


def halve(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def change_mode(path: Path, mode: str) -> None:
    """Write an image again as ``P``, ``RGB``, ``I;16`` ..., of the same shades."""
    grey = np.asarray(Image.open(path).convert('L'))
    Image.fromarray(grey.astype(np.uint16) if mode == 'I;16' else grey).convert(mode).save(path)


def sentence(tool: ModuleType, source: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What a converter that fails prints, which is one line."""
    capsys.readouterr()
    assert run_tool(tool.main, [str(source), '--out', str(out)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1, said
    return said[0]


NAMES = {'train': ['a.jpg', 'b ü.png'], 'val': ['c.png']}


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    """Two training images, one of each suffix, and a validation image; no test split."""
    source, random = tmp_path / 'source', np.random.default_rng(0)
    for split, names in NAMES.items():
        lines = []
        for name in names:
            mask = f'{split}annot/{Path(name).stem}.png'
            write(source / split / name, random.integers(256, size=(6, 8, 3)))
            write(source / mask, np.arange(48).reshape(6, 8) % 12)
            lines.append(f'/SegNet/CamVid/{split}/{name} /SegNet/CamVid/{mask}\n')
        (source / f'{split}.txt').write_text(''.join(lines))
    return source


def test_camvid(camvid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / 'out'
    CAMVID.main([str(camvid), '--out', str(out)])
    assert (
        'train: 2 images (of 367)\nval: 1 images (of 101)\ntest: absent' in capsys.readouterr().out
    )

    prefix = dict(img_path='images/train', seg_map_path='annotations/train')
    dataset = CamVidDataset(data_root=str(out), data_prefix=prefix)
    assert len(dataset) == 2 and len(dataset.metainfo['classes']) == 11
    for sample, name in zip((dataset.get_data_info(0), dataset.get_data_info(1)), NAMES['train']):
        original = camvid / 'train' / name
        assert Path(sample['img_path']).stem == original.stem
        assert np.array_equal(cv2.imread(sample['img_path']), cv2.imread(str(original)))
        labels = cv2.imread(sample['seg_map_path'], cv2.IMREAD_UNCHANGED)
        expected = np.arange(48).reshape(6, 8) % 12
        assert np.array_equal(labels, np.where(expected == 11, 255, expected))


def _repeat(root: Path) -> None:
    for folder in ('', 'annot'):
        shutil.copy(root / f'train{folder}/b ü.png', root / f'val{folder}/b ü.png')
    (root / 'val.txt').unlink()


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (lambda root: (root / 'trainannot/b ü.png').unlink(), 'no partner (b ü for one)'),
        (lambda root: shutil.rmtree(root / 'trainannot'), '2 of the images and masks of train'),
        (
            lambda root: [(root / f'train{kind}/b ü.png').unlink() for kind in ('', 'annot')],
            'train.txt and source/train differ in 1 names (b ü for one): unpack',
        ),
        (
            lambda root: [shutil.rmtree(root / f'val{kind}') for kind in ('', 'annot')],
            'val.txt and source/val differ in 1 names (c for one): unpack',
        ),
        (lambda root: (root / 'val' / 'c.png').write_bytes(b''), 'c.png cannot be decoded (cannot'),
        (lambda root: halve(root / 'val/c.png'), 'c.png cannot be decoded ('),
        (lambda root: halve(root / 'train/a.jpg'), 'a.jpg cannot be decoded ('),
        (lambda root: halve(root / 'trainannot/a.png'), 'trainannot/a.png cannot be decoded ('),
        (
            lambda root: write(root / 'valannot/c.png', np.zeros((6, 9))),
            'c.png has shape (6, 9), but its image (6, 8)',
        ),
        (lambda root: write(root / 'trainannot/a.png', np.full((6, 8), 12)), 'holds label 12'),
        (_repeat, 'b ü is in train and in val'),
        (
            lambda root: write(root / 'val/c.JPG', np.zeros((6, 8, 3))),
            'val/c.JPG and c.png have one name',
        ),
        (lambda root: change_mode(root / 'val/c.png', 'I;16'), 'c.png has the mode I;16'),
        *[
            (
                lambda root, mode=mode: change_mode(root / 'valannot/c.png', mode),
                f'valannot/c.png has the mode {mode}: a mask has one channel',
            )
            for mode in ('I;16', 'P', 'RGB', 'RGBA')
        ],
        (lambda root: root.rename(root.with_name('elsewhere')), 'source does not exist'),
        (
            lambda root: [shutil.rmtree(path) for path in root.glob('*/')],
            'train.txt and source/train differ in 2 names',
        ),
        (
            lambda root: (
                [path.unlink() for path in root.glob('*.txt')]
                + [path.rename(path.with_name(f'x{path.name}')) for path in list(root.glob('*/'))]
            ),
            'source is not CamVid in the layout of SegNet: it has no train/ with trainannot/',
        ),
    ],
)
def test_camvid_that_is_wrong(
    camvid: Path,
    spoil: Callable[[Path], None],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(camvid.parent)
    spoil(Path('source'))
    assert message in sentence(CAMVID, Path('source'), Path('out'), capsys)
    assert not Path('out').exists()


# One id of each split.
IDS = {'train': 'image-0', 'val': 'bild ä 3', 'test': 'image-13'}


@pytest.fixture
def nuclei(tmp_path: Path) -> Path:
    """A grey, an RGB and an RGBA picture of two nuclei each."""
    source, random = tmp_path / 'source', np.random.default_rng(0)
    for name, channels in zip(IDS.values(), (1, 3, 4)):
        pixels = random.integers(256, size=(10, 12, channels))
        pixels[..., 3:] = 255
        write(source / name / 'images' / f'{name}.png', pixels)
        for number in range(2):
            mask = np.zeros((10, 12))
            mask[2 : 5 + number, 6 * number : 6 * number + 4] = 255
            write(source / name / 'masks' / f'{number}.png', mask)
    return source


def test_registered() -> None:
    for dataset in (CamVidDataset, NucleiDataset):
        assert DATASETS.get(f'mmvim.{dataset.__name__}') is dataset


def test_splits() -> None:
    assert {split: NUCLEI.split_of(name) for split, name in IDS.items()} == {
        split: split for split in IDS
    }


def test_nuclei(nuclei: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / 'out'
    NUCLEI.main([str(nuclei), '--out', str(out)])
    said = capsys.readouterr().out
    assert 'overlap' not in said and f'{out} is complete, after ' in said
    for split, name in IDS.items():
        file = out / 'annotations' / f'instances_{split}.json'
        assert f'{split}: 1 images (of {NUCLEI.WHOLE[split]}), 2 nuclei' in said
        coco = COCO(str(file))
        for number, annotation in enumerate(coco.loadAnns(coco.getAnnIds())):
            mask = cv2.imread(str(nuclei / name / 'masks' / f'{number}.png'), 0) > 0
            assert np.array_equal(coco.annToMask(annotation), mask)
            assert annotation['area'] == mask.sum() and annotation['bbox'][2:] == [4, 3 + number]
        picture = cv2.imread(str(out / split / f'{name}.png'), cv2.IMREAD_UNCHANGED)
        original = nuclei / name / 'images' / f'{name}.png'
        assert np.array_equal(picture, cv2.imread(str(original), cv2.IMREAD_COLOR))
        dataset = NucleiDataset(ann_file=str(file), data_prefix=dict(img=str(out / split)))
        assert len(dataset[0]['instances']) == 2
        assert dataset.metainfo['classes'] == ('nucleus',)


def test_masks_that_are_odd(
    nuclei: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = nuclei / IDS['train'] / 'masks'
    write(masks / '2.png', np.zeros((10, 12)))
    (masks / '3.png').write_bytes((masks / '0.png').read_bytes())
    write(masks / '4.png', np.pad(np.full((3, 3), 255), ((3, 4), (2, 7))))
    NUCLEI.main([str(nuclei), '--out', str(tmp_path / 'out')])
    said = capsys.readouterr().out
    assert '1 empty masks left out' in said and '1 duplicate masks left out' in said
    assert '1 masks overlap' in said and 'train: 1 images (of 451), 3 nuclei' in said
    document = json.loads((tmp_path / 'out/annotations/instances_train.json').read_text())
    assert len(document['annotations']) == 3


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (
            lambda root: write(root / IDS['val'] / 'masks' / '0.png', np.ones((9, 12))),
            '0.png has shape (9, 12), but its image (10, 12)',
        ),
        (lambda root: [path.unlink() for path in root.glob('*/masks/*')], 'has no nucleus'),
        (lambda root: shutil.rmtree(root / IDS['val'] / 'masks'), f'{IDS["val"]} has no nucleus'),
        (
            lambda root: [write(path, np.zeros((10, 12))) for path in root.glob('*/masks/*')],
            'has no nucleus',
        ),
        (lambda root: [p.unlink() for p in root.glob('*/images/*')], 'is not stage1_train: it has'),
        (lambda root: shutil.rmtree(root / IDS['val'] / 'images'), '.png is absent: unpack'),
        (lambda root: (root / IDS['test'] / 'masks/0.png').write_bytes(b'x'), '0.png cannot be'),
        (lambda root: halve(root / IDS['test'] / 'masks/0.png'), '0.png cannot be decoded ('),
        (
            lambda root: halve(root / IDS['test'] / 'images' / f'{IDS["test"]}.png'),
            f'{IDS["test"]}.png cannot be decoded (',
        ),
        (
            lambda root: write(root / IDS['val'] / 'masks/0.png', np.arange(120).reshape(10, 12)),
            '0.png holds the values 1 and 2: a mask is of one nucleus',
        ),
        *[
            (
                lambda root, mode=mode: change_mode(root / IDS['val'] / 'masks/1.png', mode),
                f'1.png has the mode {mode}: a mask has one channel',
            )
            for mode in ('I;16', 'P', 'RGB', 'RGBA')
        ],
        (lambda root: root.rename(root.with_name('elsewhere')), 'source does not exist'),
        (lambda root: shutil.rmtree(root) or root.mkdir(), 'is not stage1_train: it has no <id>/'),
        (
            lambda root: shutil.rmtree(root) or root.write_bytes(b'PK'),
            'source is a file: unpack it (python -m zipfile -e source FOLDER)',
        ),
    ],
)
def test_nuclei_that_are_wrong(
    nuclei: Path,
    spoil: Callable[[Path], object],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(nuclei.parent)
    spoil(Path('source'))
    assert message in sentence(NUCLEI, Path('source'), Path('out'), capsys)
    assert not Path('out').exists()


def test_data_of_the_other_set(
    camvid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'out'
    CAMVID.main([str(camvid), '--out', str(out)])
    assert 'is not stage1_train' in sentence(NUCLEI, camvid, tmp_path / 'n', capsys)
    assert 'is not stage1_train' in sentence(NUCLEI, out, tmp_path / 'n', capsys)
    assert 'is not CamVid' in sentence(CAMVID, out, tmp_path / 'n', capsys)


TOOLS_AND_SOURCES = [(CAMVID, 'camvid'), (NUCLEI, 'nuclei')]


@pytest.mark.parametrize(('tool', 'kind'), TOOLS_AND_SOURCES)
def test_places_that_cannot_be_written(
    tool: ModuleType,
    kind: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, out = request.getfixturevalue(kind), tmp_path / 'out'
    before = sorted(source.rglob('*'))
    assert 'which is read, or lies in it' in sentence(tool, source, source, capsys)
    assert 'which is read, or lies in it' in sentence(tool, source, source / 'out', capsys)
    assert sorted(source.rglob('*')) == before
    assert 'is not empty, it holds source' in sentence(tool, source, tmp_path, capsys)
    out.write_text('a file')
    assert 'out cannot be written (File exists)' in sentence(tool, source, out, capsys)
    out.unlink()
    out.mkdir()
    tool.main([str(source), '--out', str(out)])  # an empty folder will do
    assert 'is not empty, it holds annotations' in sentence(tool, source, out, capsys)


@pytest.mark.parametrize(('tool', 'kind'), TOOLS_AND_SOURCES)
@pytest.mark.parametrize(
    ('error', 'code', 'said'),
    [
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            1,
            'out cannot be written (No space left on device)',
        ),
        (KeyboardInterrupt(), INTERRUPTED, 'interrupted'),
    ],
)
def test_an_interrupted_conversion_leaves_nothing_and_can_be_started_again(
    tool: ModuleType,
    kind: str,
    error: BaseException,
    code: int,
    said: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, out, written = request.getfixturevalue(kind), tmp_path / 'out', []
    write_bytes = Path.write_bytes

    def fail_late(path: Path, content: Any) -> int:
        written.append(path)
        if len(written) == 3:
            raise error
        return write_bytes(path, content)

    argv = [str(source), '--out', str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(Path, 'write_bytes', fail_late)
        assert run_tool(tool.main, argv) == code
    assert said in capsys.readouterr().err and not out.exists()
    # A process that is killed cannot clear up.
    write(out / '.unfinished/images/train/left.png', np.zeros((2, 2)))
    assert run_tool(tool.main, argv) == 0
    files = {path.relative_to(out).name for path in out.rglob('*')}
    assert not {'left.png', '.unfinished'} & files and 'annotations' in files
