"""The parts of the demos that decide: what is kept, what passes, what is drawn."""

import importlib
import json
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmvim.datasets.patterns import TEXTURE_CLASSES, PatternsSpec, generate
from mmvim.errors import UserError

pytest.importorskip('mmdet')
pytest.importorskip('mmpretrain')
pytest.importorskip('mmseg')

ROOT = Path(__file__).parents[2]


@pytest.fixture
def demo(monkeypatch, tmp_path):
    """A module of the demos by name; the current folder is an empty one."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools' / 'demos'))
    monkeypatch.chdir(tmp_path)
    return importlib.import_module


@pytest.fixture
def detection(demo):
    return demo('detection')


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


def test_detector_starts_from_the_backbone_of_the_other_demo(config, demo):
    segmentation = demo('segmentation')
    theirs = Config.fromfile(ROOT / segmentation.CONFIGS[segmentation.OURS])
    folder = segmentation.OUT / segmentation.OURS.lower() / 'train'
    file = Path(config.model.backbone.init_cfg.checkpoint)
    assert file == folder / f'iter_{theirs.train_cfg.max_iters}.pth'
    for key in ('arch', 'img_size', 'patch_size', 'cls_token', 'tap'):
        ours, other = (cfg.model.backbone.get(key) for cfg in (config, theirs))
        assert ours == other or None in (ours, other), key


@pytest.fixture
def common(demo, monkeypatch, config, tmp_path):
    """The shared part; what it would run is recorded, and a training leaves a checkpoint."""
    module = demo('common')
    monkeypatch.setattr(module, 'commands', [], raising=False)

    def run(*command):
        module.commands.append([str(word) for word in command])
        folder = Path(command[command.index('--work-dir') + 1])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'last_checkpoint').write_text(str(folder / 'iter_600.pth'))
        (folder / 'iter_600.pth').touch()

    monkeypatch.setattr(module, 'run', run)
    module.DATA.mkdir(parents=True)
    (module.DATA / module.MANIFEST).write_text('{"seed": 0}')
    backbone = Path(config.model.backbone.init_cfg.checkpoint)
    backbone.parent.mkdir(parents=True)
    backbone.write_bytes(b'weights')
    return module


@pytest.mark.parametrize('change', ['nothing', 'seed', 'backbone', 'data', 'config', 'code'])
def test_a_training_is_kept_only_with_the_same_ingredients(
    change, config, common, detection, tmp_path, monkeypatch
):
    given = [detection.CONFIG, Path('out'), 'randomness.seed=0']
    first = common.train(*given)
    assert first.checkpoint == 'out/train/iter_600.pth' and first.minutes > 0
    assert common.commands == [
        [
            *('train', detection.CONFIG, '--work-dir', 'out/train', '--resume'),
            *('--cfg-options', 'randomness.seed=0'),
        ]
    ]
    if change == 'seed':
        given[-1] = 'randomness.seed=1'
    elif change == 'backbone':
        Path(config.model.backbone.init_cfg.checkpoint).write_bytes(b'others')
    elif change == 'data':
        (common.DATA / common.MANIFEST).write_text('{"seed": 1}')
    elif change == 'config':
        config.optim_wrapper.optimizer.lr *= 2
        config.dump('other.py')
        given[0] = tmp_path / 'other.py'
    elif change == 'code':
        monkeypatch.setattr(common, 'CODE', common.CODE[1:])
    Path('out/mine').touch()
    second = common.train(*given)
    assert (second == first) == (len(common.commands) == 1) == (change == 'nothing')
    assert Path('out/mine').exists() == (change == 'nothing')


def test_all_sources_are_ingredients(common):
    found = {path.relative_to(ROOT) for pattern in common.CODE for path in ROOT.glob(pattern)}
    for folder in ('mmvim', 'ops/mmvim_ops', 'ops/csrc'):
        sources = {path.relative_to(ROOT) for path in (ROOT / folder).rglob('*.*')}
        kept = {path for path in sources if '.mim' not in path.parts}
        ignored = ('.pyc', '.so', '.json', '.md', '.in', '.typed')
        assert not {path for path in kept - found if path.suffix not in ignored}


def test_an_interrupted_training_goes_on(common, detection, monkeypatch):
    def interrupted(*command):
        folder = Path(command[command.index('--work-dir') + 1])
        folder.mkdir()
        (folder / 'iter_90.pth').touch()
        raise SystemExit(130)

    finish = common.run
    monkeypatch.setattr(common, 'run', interrupted)
    with pytest.raises(SystemExit):
        common.train(detection.CONFIG, Path('out'))
    spent = json.loads(Path('out/training.json').read_text())['minutes']
    monkeypatch.setattr(common, 'run', finish)
    assert common.train(detection.CONFIG, Path('out')).minutes > spent > 0
    assert Path('out/train/iter_90.pth').exists() and '--resume' in common.commands[-1]


def test_gate(demo, tmp_path, capsys):
    common = demo('common')
    common.conclude({'it': Path('out')}, [('a', 80.0, 80.0, 100.0), ('b', 0.0, 0.0, 40.0)])
    assert f'it: {tmp_path / "out"}' in capsys.readouterr().out
    checks = [('a', 79.9, 80.0, 100.0), ('b', 40.1, 0.0, 40.0), ('c', float('nan'), 0.0, 100.0)]
    for check in checks:
        with pytest.raises(UserError, match=rf'the demo fails: {check[0]} is'):
            common.conclude({}, [check])


def failed(checks):
    return [name for name, value, least, most in checks if not least <= value <= most]


def test_gate_of_detection(detection):
    passing = {name: least / 100 + 0.001 for name, least in detection.GATE.items()}
    assert not failed(detection.gate(passing))
    assert detection.GATE['coco/bbox_mAP_50'] >= 30 and detection.GATE['coco/segm_mAP_50'] >= 25
    for name in passing:
        assert failed(detection.gate(passing | {name: 0.0})) == [name]


@pytest.mark.parametrize(
    'ours, vit, found',
    [((60.0, 60.0), 63.0, 0), ((40.0, 79.0), None, 1), ((90.0, 19.0), 10.0, 2), ((80, 80), 90, 1)],
)
def test_gate_of_segmentation(demo, ours, vit, found):
    segmentation = demo('segmentation')
    columns = {segmentation.OURS: [*ours, np.mean(ours), '1 min']}
    if vit is not None:
        columns[segmentation.VIT] = [vit, vit, vit, '1 min']
    assert len(failed(segmentation.gate(columns, ['a', 'b']))) == found


@pytest.mark.parametrize(
    'top1, linear, found', [(80, 40, 0), (100, 12.5, 0), (79, 12.5, 1), (80, 40.5, 1), (0, 100, 2)]
)
def test_gate_of_classification(demo, top1, linear, found):
    assert len(failed(demo('classification').gate(top1, linear))) == found


def test_pictures_of_detection_hold_truth_and_prediction(config, detection, tmp_path):
    cv2.imwrite('0.png', np.full((32, 32, 3), 128, np.uint8))
    boxes, masks = torch.tensor([[8.0, 8, 24, 24]]), torch.zeros(1, 32, 32, dtype=torch.bool)
    masks[:, 8:24, 8:24] = True
    truth = dict(bboxes=boxes, masks=masks.numpy(), labels=torch.tensor([2]))
    unsure = dict(truth, masks=masks, scores=torch.tensor([detection.MIN_SCORE / 2]))
    sample = dict(img_path='0.png', gt_instances=truth, pred_instances=unsure)
    detection.draw([sample], Path('pictures'), config.metainfo)
    assert Path('pictures.png').is_file()
    left, right = np.hsplit(cv2.imread('pictures/0.png'), 2)
    assert left.shape[0] == 32 * detection.ENLARGED
    middle = 16 * detection.ENLARGED
    assert (left[middle, middle] != 128).any()
    # A prediction of a low score is none.
    assert (right[middle, middle] == 128).all()


def test_pictures_and_table_of_segmentation(demo, capsys):
    segmentation = demo('segmentation')
    metainfo = Config.fromfile(ROOT / segmentation.CONFIGS[segmentation.OURS]).metainfo
    truth, predicted = torch.zeros(1, 32, 32, dtype=torch.long), torch.ones(1, 32, 32).long()
    samples = []
    for number in range(3):
        cv2.imwrite(f'{number}.png', np.full((32, 32, 3), 128, np.uint8))
        held = dict(gt_sem_seg=dict(data=truth), pred_sem_seg=dict(data=predicted))
        samples.append(dict(held, img_path=f'{number}.png'))
    segmentation.draw(samples, metainfo)
    drawn = cv2.imread(str(segmentation.OUT / 'predictions' / '2.png'))[..., ::-1]
    assert drawn.shape == (64, 2 * (3 * 32 + 2 * 4), 3)
    colours = [[128] * 3, [*metainfo.palette[0]], [*metainfo.palette[1]]]
    assert [drawn[32, x].tolist() for x in (32, 104, 176)] == colours
    assert (segmentation.OUT / 'predictions.png').is_file()
    iou = segmentation.per_class_iou(samples, 3)
    assert iou[:2] == [0, 0] and np.isnan(iou[2])
    demo('common').show('title', ['a', 'b', 'c', 'mean'], {'x': [*iou, '1 min'], 'y': [None, 5.25]})
    rows = [line.split('│')[1:4] for line in capsys.readouterr().out.splitlines() if '│' in line]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells == [
        *(['a', '0.0', '-'], ['b', '0.0', '5.2']),
        *(['c', 'nan', '-'], ['mean', '1 min', '-']),
    ]


def test_pictures_are_spread_evenly(demo):
    assert demo('common').evenly(range(200), 4) == range(0, 200, 50)
    assert list(demo('common').evenly([1, 2], 4)) == [1, 2]


@pytest.fixture
def guesses(tmp_path):
    """Five images of each of eight classes, three of them recognised, the others one class off."""
    samples = []
    for label in range(8):
        for number in range(5):
            path = str(tmp_path / f'{label}-{number}.png')
            cv2.imwrite(path, np.full((16, 16, 3), 30 * label, np.uint8))
            predicted = label if number < 3 else (label + 1) % 8
            score = torch.full((8,), 0.05)
            score[predicted] = 0.65
            samples.append(
                dict(
                    img_path=path,
                    gt_label=torch.tensor([label]),
                    pred_label=torch.tensor([predicted]),
                    pred_score=score,
                )
            )
    return samples


def test_accuracy_by_class_and_over_all_images(demo, guesses):
    classification = demo('classification')
    counts = classification.confusion(*classification.labels(guesses), 8)
    expected = 3 * np.eye(8) + 2 * np.roll(np.eye(8), 1, axis=1)
    assert (counts == expected).all()
    assert classification.accuracies(counts) == pytest.approx([60] * 9)
    counts[0] *= 10
    assert classification.accuracies(counts)[-1] == pytest.approx(100 * 51 / 85)


def test_pictures_of_classification(demo, guesses, monkeypatch):
    classification = demo('classification')
    classes = Config.fromfile(ROOT / classification.CONFIG).metainfo.classes
    assert tuple(classes) == TEXTURE_CLASSES
    titles = []
    monkeypatch.setattr(
        sys.modules['matplotlib.axes'].Axes,
        'set_title',
        lambda self, text, **_: titles.append(text),
    )
    classification.draw_examples(guesses, classes, Path('examples'))
    assert len([*Path('examples').iterdir()]) == 4 * 8
    # The fourth of four images of each class, on the sheet's last row, is a mistake.
    assert titles[0] == 'blobs 0.65'
    assert titles[24:26] == ['blobs, taken for\nchecker 0.65', 'checker, taken for\ndots 0.65']
    counts = classification.confusion(*classification.labels(guesses), 8)
    classification.draw_confusion(counts, classes, Path('confusion.png'))
    for file in ('examples.png', 'confusion.png'):
        assert cv2.imread(file) is not None
