"""The parts of the demos that decide: what is kept, what passes, what is drawn."""

import pickle
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmvim.datasets.patterns import PatternsSpec, generate

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

ROOT = Path(__file__).parents[2]


@pytest.fixture
def detection(monkeypatch, tmp_path):
    """The demo of detection, its repository an empty folder."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools' / 'demos'))
    import detection as module

    for owner in (module, sys.modules['common']):
        monkeypatch.setattr(owner, 'ROOT', tmp_path)
    return module


@pytest.fixture
def config(detection):
    return Config.fromfile(ROOT / detection.CONFIG)


def test_detector_is_made_of_stock_heads_around_our_backbone_and_neck(config):
    config.model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(config.model)
    heads = (model.rpn_head, model.roi_head, model.roi_head.bbox_head, model.roi_head.mask_head)
    assert all(type(head).__module__.startswith('mmdet.') for head in heads)
    assert sum(param.numel() for param in model.parameters()) < 3e6
    images = torch.zeros(1, 3, 128, 128)
    assert [level.shape[-1] for level in model.extract_feat(images)] == [32, 16, 8, 4]
    strides = [stride[0] for stride in model.rpn_head.prior_generator.strides]
    assert strides == [4, 8, 16, 32]


def test_detector_trains_and_tests_on_the_patterns(config, tmp_path, run, monkeypatch):
    """The demo's own files, with fewer and smaller images, without pretrained weights."""
    generate(tmp_path / 'data' / 'patterns', PatternsSpec(4, 2, 64, layouts=('coco',)))
    config.model.backbone.init_cfg = None
    config.train_cfg.update(max_iters=2, val_interval=2)
    config.train_dataloader.update(batch_size=2, num_workers=0, persistent_workers=False)
    config.val_dataloader.update(num_workers=0, persistent_workers=False)
    config.test_dataloader.update(num_workers=0, persistent_workers=False)
    monkeypatch.chdir(tmp_path)
    config.dump('detector.py')
    assert run('train', 'detector.py', '--work-dir', 'train').code == 0
    arguments = ('detector.py', 'train/iter_2.pth', '--work-dir', 'test', '--format-dir', 'json')
    outcome = run('test', *arguments)
    assert outcome.code == 0
    assert {'box AP medium', 'mask AP50'} <= {*re.findall(r'(?:box|mask) AP[ \w]*\w', outcome.out)}
    assert (tmp_path / 'json' / 'results.segm.json').is_file()


def test_detector_starts_from_the_backbone_of_the_other_demo(config, detection):
    import segmentation

    theirs = Config.fromfile(ROOT / segmentation.CONFIGS[segmentation.OURS])
    file = Path(config.model.backbone.init_cfg.checkpoint)
    assert file == detection.BACKBONE_DIR / f'iter_{theirs.train_cfg.max_iters}.pth'
    for key in ('arch', 'img_size', 'patch_size', 'cls_token', 'tap'):
        ours, other = (cfg.model.backbone.get(key) for cfg in (config, theirs))
        assert ours == other or None in (ours, other), key


def test_backbone_is_trained_where_it_is_missing(config, detection, tmp_path, monkeypatch):
    import segmentation

    calls = []
    monkeypatch.setattr(detection, 'run', lambda *command: calls.append(command))
    checkpoint = detection.train_backbone(config)
    ((tool, trained, *options),) = calls
    assert (tool, trained) == ('tools/train.py', segmentation.CONFIGS[segmentation.OURS])
    assert options == ['--work-dir', checkpoint.parent, '--resume']
    (tmp_path / checkpoint).parent.mkdir(parents=True)
    (tmp_path / checkpoint).touch()
    assert detection.train_backbone(config) == checkpoint
    assert len(calls) == 1


@pytest.mark.parametrize('change', ['nothing', 'seed', 'backbone', 'data', 'config'])
def test_a_training_goes_on_only_with_the_same_ingredients(change, config, detection, tmp_path):
    (tmp_path / detection.DATA).mkdir(parents=True)
    manifest = tmp_path / detection.DATA / detection.MANIFEST
    manifest.write_text('{"seed": 0}')
    (tmp_path / 'backbone.pth').write_bytes(b'weights')
    arguments = [config, Path('backbone.pth'), 0]
    detection.open_work_dir(tmp_path / 'out', detection.ingredients(*arguments))
    (tmp_path / 'out' / 'iter_150.pth').touch()
    if change == 'seed':
        arguments[-1] = 1
    elif change == 'backbone':
        (tmp_path / 'backbone.pth').write_bytes(b'others')
    elif change == 'data':
        manifest.write_text('{"seed": 1}')
    elif change == 'config':
        config.optim_wrapper.optimizer.lr *= 2
    detection.open_work_dir(tmp_path / 'out', detection.ingredients(*arguments))
    assert (tmp_path / 'out' / 'iter_150.pth').exists() == (change == 'nothing')


def test_average_precision_is_drawn_in_per_cent(detection):
    curve = detection.Curve([150, 300], [0.25, 0.5], validation=True)
    assert detection.in_per_cent(curve) == detection.Curve([150, 300], [25, 50], validation=True)


def test_gate(detection):
    passing = {name: least / 100 + 0.001 for name, least in detection.GATE.items()}
    assert detection.shortcomings(passing) == []
    assert detection.GATE['coco/bbox_mAP_50'] >= 30 and detection.GATE['coco/segm_mAP_50'] >= 25
    for name in passing:
        (found,) = detection.shortcomings(passing | {name: float('nan')})
        assert found.startswith(name)


def test_pictures_hold_truth_and_prediction(config, detection, tmp_path):
    pixels = np.full((32, 32, 3), 128, np.uint8)
    cv2.imwrite(str(tmp_path / '0.png'), pixels)
    boxes, masks = torch.tensor([[8.0, 8, 24, 24]]), torch.zeros(1, 32, 32, dtype=torch.bool)
    masks[:, 8:24, 8:24] = True
    truth = dict(bboxes=boxes, masks=masks.numpy(), labels=torch.tensor([2]))
    unsure = dict(truth, masks=masks, scores=torch.tensor([detection.MIN_SCORE / 2]))
    sample = dict(img_path='0.png', gt_instances=truth, pred_instances=unsure)
    (tmp_path / 'dump.pkl').write_bytes(pickle.dumps([sample]))
    detection.draw_predictions(tmp_path / 'dump.pkl', tmp_path / 'pictures', config)
    assert (tmp_path / 'pictures.png').is_file()
    drawn = cv2.imread(str(tmp_path / 'pictures' / '0.png'))
    left, right = np.hsplit(drawn, 2)
    assert left.shape[0] == 32 * detection.ENLARGED
    middle = 16 * detection.ENLARGED
    assert (left[middle, middle] != 128).any()
    # A prediction of a low score is none.
    assert (right[middle, middle] == 128).all()


@pytest.fixture
def segmentation(monkeypatch, tmp_path):
    """The demo of segmentation, its repository an empty folder."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools' / 'demos'))
    import segmentation as module

    monkeypatch.setattr(module, 'ROOT', tmp_path)
    return module


@pytest.mark.parametrize(
    'ours, vit, found',
    [((60.0, 60.0), 63.0, 0), ((40.0, 79.0), None, 1), ((90.0, 19.0), 10.0, 2), ((80, 80), 90, 1)],
)
def test_gate_of_segmentation(segmentation, ours, vit, found):
    results = {segmentation.OURS: segmentation.Result(np.array(ours))}
    if vit is not None:
        results[segmentation.VIT] = segmentation.Result(np.array([vit, vit]))
    assert len(segmentation.shortcomings(results, ['a', 'b'])) == found


def test_pictures_and_table_of_segmentation(segmentation, tmp_path):
    config = Config.fromfile(ROOT / segmentation.CONFIGS[segmentation.OURS])
    truth, predicted = torch.zeros(1, 32, 32, dtype=torch.long), torch.ones(1, 32, 32).long()
    samples = []
    for number in range(3):
        cv2.imwrite(str(tmp_path / f'{number}.png'), np.full((32, 32, 3), 128, np.uint8))
        held = dict(gt_sem_seg=dict(data=truth), pred_sem_seg=dict(data=predicted))
        samples.append(dict(held, img_path=f'{number}.png'))
    (tmp_path / 'dump.pkl').write_bytes(pickle.dumps(samples))
    segmentation.draw_predictions(tmp_path / 'dump.pkl', tmp_path / 'pictures', config)
    drawn = cv2.imread(str(tmp_path / 'pictures' / '2.png'))[..., ::-1]
    palette = config.metainfo.palette
    assert drawn.shape == (64, 2 * (3 * 32 + 2 * 4), 3)
    assert [drawn[32, x].tolist() for x in (32, 104, 176)] == [
        [128] * 3,
        [*palette[0]],
        [*palette[1]],
    ]
    assert (tmp_path / 'pictures.png').is_file()
    iou = segmentation.per_class_iou(tmp_path / 'dump.pkl', 3)
    assert iou[:2].tolist() == [0, 0] and np.isnan(iou[2])
    table = segmentation.to_table({'ours': segmentation.Result(iou)}, ['a', 'b', 'c'])
    assert [*table.columns[1].cells] == ['0.0', '0.0', 'nan', '0.0', '-', '-']
