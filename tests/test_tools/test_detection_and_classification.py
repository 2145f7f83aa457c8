"""The same tools on stock configs of mmdet and mmpretrain, from training to pictures."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import task_configs as configs
import torch
from PIL import Image

pytestmark = pytest.mark.stack
Run = Callable[..., Any]


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tests of one library follow on each other: the first one trains."""
    path = tmp_path_factory.mktemp('tasks')
    configs.write_coco(path / 'coco')
    configs.write_folders(path / 'folders')
    (path / 'detection.py').write_text(configs.DETECTION)
    (path / 'classification.py').write_text(configs.CLASSIFICATION)
    return path


@pytest.fixture(autouse=True)
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data roots are relative."""
    monkeypatch.chdir(folder)


def trained(run: Run, task: str, library: str) -> Path:
    """The checkpoint of one epoch, trained where it is not there yet."""
    pytest.importorskip(library)
    checkpoint = Path('trained', task, 'epoch_1.pth')
    if not checkpoint.is_file():
        assert run('train', f'{task}.py', '--work-dir', checkpoint.parent).code == 0
    return checkpoint


@pytest.mark.operators
def test_detector_test_formats_draws_and_dumps(run: Run) -> None:
    checkpoint = trained(run, 'detection', 'mmdet')
    where = ('--show-dir', 'drawn', '--format-dir', 'json', '--dump', 'det.pkl')
    # A low threshold: one epoch makes no confident detector.
    low = ('--cfg-options', 'model.test_cfg.rcnn.score_thr=0.0')
    outcome = run('test', 'detection.py', checkpoint, *where, '--work-dir', 'w1', *low)
    assert outcome.code == 0
    assert 'coco/segm_mAP' in outcome.out
    assert 'pictures: drawn' in outcome.out
    assert sorted(path.name for path in Path('drawn').iterdir()) == ['0.png', '1.png', '2.png']
    boxes = json.loads(Path('json/results.bbox.json').read_text())
    assert {'image_id', 'bbox', 'score', 'category_id'} <= set(boxes[0])
    assert Path('json/results.segm.json').is_file()
    assert len(pickle.loads(Path('det.pkl').read_bytes())) == 3


def test_detector_on_a_split_without_ground_truth(run: Run) -> None:
    checkpoint = trained(run, 'detection', 'mmdet')
    held = json.loads(Path('coco/instances.json').read_text())
    Path('coco/info.json').write_text(json.dumps({**held, 'annotations': []}))
    options = ('test_evaluator.ann_file=coco/info.json', 'model.test_cfg.rcnn.score_thr=0.0')
    outcome = run(
        'test', 'detection.py', checkpoint, '--format-dir', 'only', '--work-dir', 'w2',
        '--cfg-options', *options, 'test_dataloader.dataset.ann_file=info.json',
    )  # fmt: skip
    assert outcome.code == 0
    assert 'segm_mAP' not in outcome.out
    assert Path('only/results.bbox.json').is_file()


@pytest.mark.operators
def test_detector_usual_augmentation(run: Run) -> None:
    checkpoint = trained(run, 'detection', 'mmdet')
    sentence = run('test', 'detection.py', checkpoint, '--tta', '--work-dir', 'w3').sentence
    assert 'mmdet merges boxes only' in sentence

    weights = torch.load(checkpoint, weights_only=False)['state_dict']
    boxes = {key: value for key, value in weights.items() if 'mask_head' not in key}
    torch.save(dict(state_dict=boxes), 'boxes.pth')
    options = ('--cfg-options', 'model.roi_head.mask_head=None', 'test_evaluator.metric=bbox')
    outcome = run('test', 'detection.py', 'boxes.pth', '--tta', '--work-dir', 'w3', *options)
    assert outcome.code == 0
    assert 'coco/bbox_mAP' in outcome.out
    assert "type='DetTTAModel'" in Path('w3/detection.py').read_text()


@pytest.mark.operators
def test_detector_predicts_boxes_and_masks(run: Run) -> None:
    coco_masks = pytest.importorskip('pycocotools.mask')
    checkpoint = trained(run, 'detection', 'mmdet')
    low = ('--cfg-options', 'model.test_cfg.rcnn.score_thr=0.0')
    outcome = run('predict', 'detection.py', checkpoint, 'coco/images', '--out', 'p', *low)
    assert outcome.code == 0
    assert 'predictions.jsonl: p/predictions.jsonl' in outcome.out
    records = [json.loads(line) for line in Path('p/predictions.jsonl').read_text().splitlines()]
    assert [record['image'] for record in records] == [f'coco/images/{i}.png' for i in range(3)]
    first = records[0]
    count = len(first['labels'])
    assert count > 0
    assert first['classes'] == [('box', 'bar')[label] for label in first['labels']]
    assert all(0 <= score <= 1 for score in first['scores'])
    assert len(first['scores']) == len(first['bboxes']) == len(first['masks']) == count
    assert len(first['bboxes'][0]) == 4
    masks = [coco_masks.decode(mask) for mask in first['masks']]
    assert masks[0].shape == (48, 64)
    assert Image.open('p/1.png').size == (64, 48)

    # Each pixel has the number of the most certain prediction over it, of those that are drawn.
    assert first['scores'] == sorted(first['scores'], reverse=True)
    expected = np.zeros((48, 64))
    for number, (mask, score) in enumerate(zip(masks, first['scores']), start=1):
        if score > 0.3:
            expected[(mask > 0) & (expected == 0)] = number
    labels = np.asarray(Image.open('p/labels/0.png'))
    assert labels.dtype == np.uint16 and labels.any() and np.array_equal(labels, expected)
    assert len(list(Path('p/labels').iterdir())) == 3 and 'labels: p/labels' in outcome.out

    none = ('model.test_cfg.rcnn.score_thr=1.0', 'visualizer.type=mmvim.OutlineVisualizer')
    argv = ('coco/images/0.png', '--out', 'none', '--cfg-options', *none)
    assert run('predict', 'detection.py', checkpoint, *argv).code == 0
    assert not np.asarray(Image.open('none/labels/0.png')).any()
    pixels = (np.asarray(Image.open(file)) for file in ('none/0.png', 'coco/images/0.png'))
    assert np.array_equal(*pixels)


@pytest.mark.parametrize('mode', ['train', 'test'])
def test_detection_ground_truth_is_drawn_in_place(run: Run, mode: str) -> None:
    pytest.importorskip('mmdet')
    argv = ('--mode', mode, '--out', f'browse_{mode}', '--number', 1)
    plain = ('--cfg-options', 'train_dataloader.dataset.pipeline.3.prob=0.0')
    assert run('browse_dataset', 'detection.py', *argv, *plain).code == 0
    drawn = np.asarray(Image.open(f'browse_{mode}/000000.png').convert('RGB')).astype(int)
    # Image 0: a grey box at (8, 10) of 24 x 16 in 64 x 48, scaled with the picture; the mask
    # drawn over it is tinted.
    scale = drawn.shape[1] / 64
    inside = drawn[int(20 * scale) : int(24 * scale), int(24 * scale) : int(30 * scale)]
    assert (np.ptp(inside, axis=2) > 20).all()
    outside = drawn[int(30 * scale) :, int(40 * scale) :]
    assert outside.mean() < 80


def test_classes_that_the_annotations_do_not_have(run: Run) -> None:
    checkpoint = trained(run, 'detection', 'mmdet')
    held = json.loads(Path('coco/instances.json').read_text())
    Path('coco/empty.json').write_text(json.dumps(dict(held, annotations=[])))
    held['categories'][1]['name'] = 'Bar'
    Path('coco/renamed.json').write_text(json.dumps(held))
    option = ('--cfg-options', 'test_dataloader.dataset.ann_file=renamed.json')
    sentence = run('test', 'detection.py', checkpoint, '--work-dir', 'w7', *option).sentence
    assert 'renamed.json has 1 of the 2 classes of the data set (box, bar)' in sentence
    # Nothing may be left of a training set, which mmengine ends with an error about arrays.
    held['categories'][0]['name'] = 'Box'
    Path('coco/renamed.json').write_text(json.dumps(held))
    Path('coco/bare.json').write_text(json.dumps(dict(held, categories=[], annotations=[])))
    keep = 'train_dataloader.dataset.filter_cfg.filter_empty_gt=True'
    for file, said in (
        ('renamed', 'renamed.json has 0 of the 2 classes of the data set (box, bar)'),
        ('bare', 'bare.json has 0 of the 2 classes'),
        ('empty', 'empty.json has no sample to use, of 3: objects are needed'),
    ):
        option = ('--cfg-options', keep, f'train_dataloader.dataset.ann_file={file}.json')
        for tool, *argv in (('train', '--work-dir', 'w7'), ('browse_dataset', '--out', 'b7')):
            assert said in run(tool, 'detection.py', *argv, *option).sentence
    option = ('--cfg-options', 'model.roi_head.bbox_head.num_classes=80')
    sentence = run('train', 'detection.py', '--work-dir', 'w7', *option).sentence
    assert 'num_classes=80, but the data of train_dataloader have 2 classes' in sentence


def test_missing_annotation_file_of_the_metric(run: Run) -> None:
    checkpoint = trained(run, 'detection', 'mmdet')
    option = ('--cfg-options', 'test_evaluator.ann_file=coco/absent.json')
    sentence = run('test', 'detection.py', checkpoint, *option).sentence
    assert sentence.startswith("test_evaluator.ann_file is 'coco/absent.json', but")


def test_classifier_from_test_to_pictures(run: Run) -> None:
    checkpoint = trained(run, 'classification', 'mmpretrain')
    argv = ('--show-dir', 'seen', '--dump', 'cls.pkl', '--work-dir', 'w4')
    outcome = run('test', 'classification.py', checkpoint, *argv)
    assert outcome.code == 0
    assert 'accuracy/top1' in outcome.out
    assert len(list(Path('seen').glob('*.png'))) == 4
    assert run('test', 'classification.py', checkpoint, '--tta', '--work-dir', 'w5').code == 0
    assert (
        'Accuracy) has no file format'
        in run('test', 'classification.py', checkpoint, '--format-dir', 'f').sentence
    )

    outcome = run('predict', 'classification.py', checkpoint, 'folders/light', '--out', 'pc')
    assert outcome.code == 0
    records = [json.loads(line) for line in Path('pc/predictions.jsonl').read_text().splitlines()]
    assert len(records) == 2
    assert records[0]['class'] == ('dark', 'light')[records[0]['label']]
    assert 0.5 <= records[0]['score'] <= 1
    assert Path('pc/light0.png').is_file()

    Path('twins').mkdir()
    for name in ('a.jpg', 'a.png', 'b.c.png'):
        Image.open('folders/light/light0.png').save(f'twins/{name}')
    before = Path('twins/a.png').read_bytes()
    sentence = run('predict', 'classification.py', checkpoint, 'twins', '--out', 'twins').sentence
    assert 'would overwrite twins/b.c.png' in sentence
    Path('twins/b.c.png').rename('twins/b.c.jpg')
    assert run('predict', 'classification.py', checkpoint, 'twins', '--out', 'twins').code == 0
    drawn = sorted(path.name for path in Path('twins').glob('*.png'))
    assert drawn == ['a.jpg.png', 'a.png', 'a.png.png', 'b.c.png']
    assert Path('twins/a.png').read_bytes() == before

    Path('folders/grey').mkdir()
    Image.open('folders/light/light0.png').save('folders/grey/grey0.png')
    options = ('--cfg-options', 'test_dataloader.dataset.metainfo.classes=(dark,grey,light)')
    sentence = run('test', 'classification.py', checkpoint, '--work-dir', 'w6', *options).sentence
    assert 'label 2 is outside the 2 classes of the model' in sentence
    shutil.rmtree('folders/grey')


def test_classification_samples_are_drawn(run: Run) -> None:
    pytest.importorskip('mmpretrain')
    for phase, size in (('original', (40, 36)), ('transformed', (32, 32))):
        argv = ('--out', phase, '--phase', phase)
        outcome = run('browse_dataset', 'classification.py', *argv)
        assert outcome.code == 0
        assert len(list(Path(phase).glob('*.png'))) == 4
        assert Image.open(f'{phase}/000000.png').size == size
