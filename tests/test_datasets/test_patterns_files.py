"""Files of the patterns dataset: the three layouts, what is refused, and the command line."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmvim.datasets.patterns import (
    CLASSES,
    PALETTE,
    TEXTURE_CLASSES,
    PatternsSpec,
    generation,
)
from mmvim.datasets.patterns.generation import MANIFEST, generate, read_manifest
from mmvim.datasets.patterns.layouts import Item, coco_annotation, files, make_item
from mmvim.datasets.patterns.preview import write_preview
from mmvim.errors import UsageError, UserError

SPEC = PatternsSpec(train=24, val=9, size=64, seed=7)
TINY = PatternsSpec(train=3, val=2, size=64, seed=1)
TOOL = 'dataset_converters/make_patterns'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp('data') / 'patterns'
    assert generate(out, SPEC)
    return out


TINY_ARGUMENTS = ('--train', 3, '--val', 2, '--size', 64, '--seed', 1)


def read_png(path):
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    return picture if picture.ndim == 2 else picture[..., ::-1]


def tree(folder):
    """Every file below a folder with its content, and every folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob('*'))
    }


def test_files_are_the_planned_ones(data):
    found = {path.relative_to(data) for path in data.rglob('*') if path.is_file()}
    assert found == {*files(SPEC), Path(MANIFEST)}


def test_ade_layout(data):
    for split, folder, count in (('train', 'training', 24), ('val', 'validation', 9)):
        names = sorted(path.name for path in (data / 'ade' / 'images' / folder).iterdir())
        assert len(names) == count
        assert names == sorted(p.name for p in (data / 'ade' / 'annotations' / folder).iterdir())
        for index, name in enumerate(names):
            scene = make_item(SPEC, Item(False, split, index))
            image = read_png(data / 'ade' / 'images' / folder / name)
            labels = read_png(data / 'ade' / 'annotations' / folder / name)
            np.testing.assert_array_equal(image, scene.image)
            np.testing.assert_array_equal(labels, scene.labels)
            assert labels.dtype == np.uint8


@pytest.mark.parametrize(('split', 'folder'), [('train', 'training'), ('val', 'validation')])
def test_coco_layout(data, split, folder):
    coco_api = pytest.importorskip('pycocotools.coco')
    coco = coco_api.COCO(str(data / 'coco' / 'annotations' / f'instances_{split}.json'))
    names = [category['name'] for category in coco.loadCats(coco.getCatIds())]
    assert names == list(TEXTURE_CLASSES)
    assert len(coco.getImgIds()) == (24 if split == 'train' else 9)
    for image in coco.loadImgs(coco.getImgIds()):
        ade = data / 'ade' / 'images' / folder / image['file_name']
        assert (data / 'coco' / split / image['file_name']).read_bytes() == ade.read_bytes()
        labels = read_png(data / 'ade' / 'annotations' / folder / image['file_name'])
        assert (image['height'], image['width']) == labels.shape
        rebuilt = np.zeros_like(labels)
        annotations = coco.loadAnns(coco.getAnnIds(image['id']))
        assert 2 <= len(annotations) <= 4
        for annotation in annotations:
            mask = coco.annToMask(annotation).astype(bool)
            assert not rebuilt[mask].any()
            rebuilt[mask] = annotation['category_id']
            rows, columns = np.nonzero(mask)
            x, y, width, height = annotation['bbox']
            assert (x, y) == (columns.min(), rows.min())
            assert (x + width - 1, y + height - 1) == (columns.max(), rows.max())
            assert annotation['area'] == mask.sum()
            assert annotation['iscrowd'] == 0
        np.testing.assert_array_equal(rebuilt, labels)


def test_imagefolder_layout(data):
    for split, count in (('train', 24), ('val', 9)):
        root = data / 'imagefolder' / split
        assert sorted(path.name for path in root.iterdir()) == list(TEXTURE_CLASSES)
        per_class = [len(list((root / name).iterdir())) for name in TEXTURE_CLASSES]
        assert sum(per_class) == count
        assert max(per_class) - min(per_class) <= 1
        for path in root.rglob('*.png'):
            scene = make_item(SPEC, Item(True, split, int(path.stem)))
            assert [CLASSES[thing.label] for thing in scene.objects] == [path.parent.name]
            np.testing.assert_array_equal(read_png(path), scene.image)


def test_classes_file(data):
    document = json.loads((data / 'classes.json').read_text())
    assert document == {'classes': list(CLASSES), 'palette': [list(rgb) for rgb in PALETTE]}


def test_preview(data, tmp_path):
    write_preview(tmp_path, SPEC)
    assert (tmp_path / 'preview.png').read_bytes() == (data / 'preview.png').read_bytes()
    sheet = cv2.imread(str(tmp_path / 'preview.png'))[..., ::-1]
    frames = {tuple(pixel) for pixel in sheet.reshape(-1, 3).tolist()}
    assert frames >= set(PALETTE[1:])
    # One scene alone leaves room, but breaks nothing.
    write_preview(tmp_path, PatternsSpec(train=1, val=1, size=96))
    assert cv2.imread(str(tmp_path / 'preview.png')).shape == sheet.shape


def test_files_do_not_depend_on_the_number_of_workers(data, tmp_path):
    generate(tmp_path / 'parallel', SPEC, workers=2)
    assert tree(tmp_path / 'parallel') == tree(data)


@pytest.mark.parametrize('layout', ['ade', 'coco', 'imagefolder'])
def test_one_layout_alone_has_the_same_files(data, tmp_path, layout):
    spec = PatternsSpec(SPEC.train, SPEC.val, SPEC.size, SPEC.seed, (layout,))
    generate(tmp_path, spec)
    found = tree(tmp_path)
    assert {name for name in ('ade', 'coco', 'imagefolder') if name in found} == {layout}
    expected = tree(data)
    assert all(found[name] == expected[name] for name in found if name.startswith(layout))


@pytest.mark.parametrize('filled', [(slice(2), slice(1)), (slice(None), slice(None)), (3, 2)])
def test_annotation_holds_box_area_and_mask(filled):
    mask_api = pytest.importorskip('pycocotools.mask')
    mask = np.zeros((4, 3), bool)
    mask[filled] = True
    found = json.loads(json.dumps(coco_annotation(mask, 5, 7)))
    np.testing.assert_array_equal(mask_api.decode(found['segmentation']), mask)
    rows, columns = np.nonzero(mask)
    assert found['bbox'] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    assert (found['area'], found['category_id'], found['image_id']) == (mask.sum(), 5, 7)


def test_layouts_are_kept_in_their_order():
    assert PatternsSpec(5, 6, 70, 8, ('imagefolder', 'ade')).layouts == ['ade', 'imagefolder']


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'train': 0}, '--train is 0'),
        ({'val': -1}, '--val is -1'),
        ({'size': 8}, '--size is 8'),
        ({'size': 5000}, '--size is 5000'),
        ({'seed': -1}, '--seed is -1'),
        ({'layouts': ('voc',)}, 'ade coco imagefolder'),
        ({'layouts': ()}, 'ade coco imagefolder'),
    ],
)
def test_bad_spec(changes, words):
    with pytest.raises(UsageError, match=words):
        PatternsSpec(**changes)


def test_a_folder_with_other_files_is_refused_and_untouched(tmp_path):
    (tmp_path / 'thesis.txt').write_text('years of work')
    before = tree(tmp_path)
    for if_exists in ('refuse', 'keep'):
        with pytest.raises(UserError, match='is not empty: add --force'):
            generate(tmp_path, TINY, if_exists=if_exists)
        assert tree(tmp_path) == before


@pytest.mark.parametrize('if_exists', ['refuse', 'keep'])
def test_another_dataset_is_refused_and_untouched(tmp_path, if_exists):
    generate(tmp_path, TINY)
    before = tree(tmp_path)
    with pytest.raises(UserError, match=r'3 \+ 2 images .* wanted: 24 \+ 9 images'):
        generate(tmp_path, SPEC, if_exists=if_exists)
    assert tree(tmp_path) == before


def test_replace_removes_what_was_written_and_nothing_else(tmp_path):
    generate(tmp_path, SPEC)
    mine = tmp_path / 'ade' / 'images' / 'training' / 'mine.png'
    mine.write_text('not yours')
    spec = PatternsSpec(train=2, val=1, size=64, layouts=('imagefolder',))
    generate(tmp_path, spec, if_exists='replace')
    found = {path.relative_to(tmp_path) for path in tmp_path.rglob('*') if path.is_file()}
    assert found == {*files(spec), Path(MANIFEST), mine.relative_to(tmp_path)}
    assert mine.read_text() == 'not yours'
    assert not (tmp_path / 'coco').exists()


def test_replace_keeps_off_files_of_others(tmp_path):
    theirs = tmp_path / 'classes.json'
    theirs.write_text('theirs')
    before = tree(tmp_path)
    with pytest.raises(UserError, match='was not written by this tool'):
        generate(tmp_path, TINY, if_exists='replace')
    assert tree(tmp_path) == before


def test_replace_beside_files_of_others(tmp_path):
    (tmp_path / 'notes.txt').write_text('keep')
    generate(tmp_path, TINY, if_exists='replace')
    assert (tmp_path / 'notes.txt').read_text() == 'keep'
    assert read_manifest(tmp_path)[1]


BROKEN = ['', 'hello', '[]', '{"version": 1, "complete": true}']
BROKEN += [
    json.dumps(dict(complete=True, spec=spec))
    for spec in (None, [], {}, {'train': '24'}, {'layouts': 'ade'}, {'size': 1}, {'colour': 1})
]


@pytest.mark.parametrize('content', BROKEN)
def test_a_strange_manifest_is_a_strangers_file(tmp_path, content):
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(UserError, match='was not written by this tool'):
        generate(tmp_path, TINY, if_exists='replace')
    assert (tmp_path / MANIFEST).read_text() == content


def test_keep(tmp_path):
    assert generate(tmp_path, TINY, if_exists='keep')
    stamp = (tmp_path / MANIFEST).stat().st_mtime_ns
    assert not generate(tmp_path, TINY, if_exists='keep')
    assert (tmp_path / MANIFEST).stat().st_mtime_ns == stamp


def test_keep_mends_a_dataset_that_lost_a_file(tmp_path):
    generate(tmp_path, TINY)
    before = tree(tmp_path)
    (tmp_path / 'coco' / 'val' / '000001.png').unlink()
    assert generate(tmp_path, TINY, if_exists='keep')
    assert tree(tmp_path) == before


def test_keep_does_not_take_an_older_version_for_this_one(tmp_path):
    generate(tmp_path, TINY)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    manifest['spec']['version'] = 0
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match='of version 0'):
        generate(tmp_path, TINY, if_exists='keep')


@pytest.mark.parametrize('if_exists', ['keep', 'replace'])
def test_an_interrupted_run_is_recognised(tmp_path, monkeypatch, if_exists):
    def interrupt(out, spec, item):
        if item.index == 2:
            raise KeyboardInterrupt
        return write_item(out, spec, item)

    write_item = generation.write_item
    with monkeypatch.context() as patch:
        patch.setattr(generation, 'write_item', interrupt)
        with pytest.raises(KeyboardInterrupt):
            generate(tmp_path / 'data', TINY)
    assert not read_manifest(tmp_path / 'data')[1]
    with pytest.raises(UserError, match='unfinished'):
        generate(tmp_path / 'data', TINY)
    assert generate(tmp_path / 'data', TINY, if_exists=if_exists)
    generate(tmp_path / 'fresh', TINY)
    assert tree(tmp_path / 'data') == tree(tmp_path / 'fresh')


def test_tool(run, tmp_path, capsys):
    out = tmp_path / 'patterns'
    base = (TOOL, '--workers', 1, '--out', out, *TINY_ARGUMENTS)
    assert run(*base) == 0
    assert 'preview.png' in capsys.readouterr().out
    generate(tmp_path / 'same', TINY)
    assert tree(out) == tree(tmp_path / 'same')
    assert run(*base, '--if-missing') == 0
    assert 'already there' in capsys.readouterr().out
    assert run(*base) == 1
    assert 'add --force' in capsys.readouterr().err
    assert run(*base, '--layouts', 'coco', '--force') == 0
    assert not (out / 'ade').exists()


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--train', 0], '--train is 0'),
        (['--size', 7], '--size is 7'),
        (['--seed', -2], '--seed is -2'),
        (['--workers', 0], '--workers is 0'),
        (['--layouts', 'voc'], 'imagefolder'),
        (['--out', 'a_file'], '--out a_file cannot be written (File exists)'),
        (['--out', 'a_file/below'], 'cannot be written (Not a directory)'),
    ],
)
def test_bad_input_is_one_sentence(run, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    Path('a_file').touch()
    before = tree(tmp_path)
    assert run(TOOL, '--out', 'data', *arguments) == (1 if '--out' in arguments else 2)
    message = capsys.readouterr().err
    assert words in message
    assert message.count('\n') == 1
    assert tree(tmp_path) == before
