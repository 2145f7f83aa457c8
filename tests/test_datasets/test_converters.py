"""tools/dataset_converters on small files in the layouts of CamVid and of stage1_train."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.registry import DATASETS
from pycocotools.coco import COCO
from repository import TOOLS, load_script

from mmvim.datasets.registered import CamVidDataset, NucleiDataset
from mmvim.errors import UserError

CAMVID = load_script(TOOLS / 'dataset_converters' / 'camvid.py')
NUCLEI = load_script(TOOLS / 'dataset_converters' / 'nuclei.py')


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels.astype(np.uint8))


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    """Two training images, one of each suffix, and a validation image; no test split."""
    source, random = tmp_path / 'source', np.random.default_rng(0)
    for split, name in (('train', 'a.jpg'), ('train', 'b.png'), ('val', 'c.png')):
        write(source / split / name, random.integers(256, size=(6, 8, 3)))
        write(source / f'{split}annot' / f'{name[0]}.png', np.arange(48).reshape(6, 8) % 12)
    return source


def test_camvid(camvid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / 'out'
    CAMVID.main([str(camvid), '--out', str(out)])
    assert 'train: 2 images\nval: 1 images\ntest: absent' in capsys.readouterr().out

    prefix = dict(img_path='images/train', seg_map_path='annotations/train')
    dataset = CamVidDataset(data_root=str(out), data_prefix=prefix)
    assert len(dataset) == 2 and len(dataset.metainfo['classes']) == 11
    for sample in (dataset.get_data_info(0), dataset.get_data_info(1)):
        name = Path(sample['img_path']).stem
        original = next((camvid / 'train').glob(f'{name}.*'))
        assert np.array_equal(cv2.imread(sample['img_path']), cv2.imread(str(original)))
        labels = cv2.imread(sample['seg_map_path'], cv2.IMREAD_UNCHANGED)
        expected = np.arange(48).reshape(6, 8) % 12
        assert np.array_equal(labels, np.where(expected == 11, 255, expected))


def _add_label(root: Path) -> None:
    write(root / 'trainannot' / 'a.png', np.full((6, 8), 12))


def _resize_mask(root: Path) -> None:
    write(root / 'valannot' / 'c.png', np.zeros((6, 9)))


def _repeat(root: Path) -> None:
    for folder in ('', 'annot'):
        (root / f'val{folder}' / 'b.png').write_bytes((root / f'train{folder}/b.png').read_bytes())


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (lambda root: (root / 'trainannot' / 'b.png').unlink(), 'no partner .b for one'),
        (lambda root: (root / 'val' / 'c.png').write_bytes(b''), 'c.png cannot be decoded'),
        (_resize_mask, r'c.png has shape \(6, 9\), but its image \(6, 8\)'),
        (_add_label, 'a.png holds label 12'),
        (_repeat, 'b is in train and in val'),
        (lambda root: root.rename(root.with_name('elsewhere')), 'is not CamVid'),
    ],
)
def test_camvid_that_is_wrong(
    camvid: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(camvid)
    with pytest.raises(UserError, match=message):
        CAMVID.main([str(camvid), '--out', str(tmp_path / 'out')])
    assert not (tmp_path / 'out').exists()


# One id of each split.
IDS = {'train': 'image-0', 'val': 'image-10', 'test': 'image-13'}


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
    for split, name in IDS.items():
        file = out / 'annotations' / f'instances_{split}.json'
        assert f'{split}: 1 images, 2 nuclei' in said
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
    assert '1 masks overlap' in said and 'train: 1 images, 3 nuclei' in said
    document = json.loads((tmp_path / 'out/annotations/instances_train.json').read_text())
    assert len(document['annotations']) == 3


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (
            lambda root: write(root / IDS['val'] / 'masks' / '0.png', np.ones((9, 12))),
            r'0.png has shape \(9, 12\), but its image \(10, 12\)',
        ),
        (lambda root: [path.unlink() for path in root.glob('*/masks/*')], 'has no nucleus'),
        (lambda root: [path.unlink() for path in root.glob('*/images/*')], 'is absent or cannot'),
        (lambda root: (root / IDS['test'] / 'masks/0.png').write_bytes(b'x'), '0.png cannot be'),
        (lambda root: root.rename(root.with_name('elsewhere')), 'is not stage1_train'),
    ],
)
def test_nuclei_that_are_wrong(
    nuclei: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(nuclei)
    with pytest.raises(UserError, match=message):
        NUCLEI.main([str(nuclei), '--out', str(tmp_path / 'out')])
    assert not (tmp_path / 'out').exists()
