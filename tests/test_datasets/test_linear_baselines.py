"""Linear classifiers of raw pixels: low on the patterns, high where colour is the class."""

import json

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmvim.datasets.patterns import (
    CLASSES,
    PALETTE,
    TEXTURE_CLASSES,
    PatternsSpec,
    generate,
    linear_baselines,
)
from mmvim.datasets.patterns.linear_baselines import (
    FEATURES,
    PENALTIES,
    WINDOW_PENALTY,
    confusion,
    fit,
    image_baseline,
    intersection_over_union,
    load_objects,
    load_scenes,
    pixel_baseline,
    reduce_features,
    windows,
)
from mmvim.errors import UserError


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    out = tmp_path_factory.mktemp('baseline')
    generate(out, PatternsSpec(train=160, val=40, seed=5, layouts=('ade',)))
    return out


@pytest.fixture(scope='module')
def scenes(root):
    return load_scenes(root, 'train'), load_scenes(root, 'val')


@pytest.fixture(scope='module')
def objects_root(tmp_path_factory):
    out = tmp_path_factory.mktemp('single')
    generate(out, PatternsSpec(train=160, val=80, size=64, seed=5, layouts=('imagefolder',)))
    return out


@pytest.fixture(scope='module')
def objects(objects_root):
    return load_objects(objects_root, 'train'), load_objects(objects_root, 'val')


def test_scenes_are_honest(scenes):
    result = pixel_baseline(*scenes)
    assert result.score <= 25
    assert result.score == pytest.approx(np.mean(result.per_class), abs=0.01)


def test_objects_are_honest(objects):
    result = image_baseline(*objects)
    assert result.score <= 30
    assert result.score == pytest.approx(np.mean(result.per_class), abs=0.01)  # equally often


def test_classes_that_have_a_colour_are_found_in_scenes(scenes, monkeypatch):
    """The same label maps, painted by class with a lot of noise: nothing is wrong with the fit."""
    monkeypatch.setattr(linear_baselines, '_PIXELS', 10_000)

    def painted(labels, seed):
        noise = np.random.default_rng(seed).normal(0, 30, (*labels.shape, 3))
        return np.clip(np.array(PALETTE)[labels] + noise, 0, 255).astype(np.uint8)

    (_, train), (_, val) = scenes
    result = pixel_baseline((painted(train, 0), train), (painted(val, 1), val))
    assert result.score > 60
    assert min(result.per_class) > 40


def test_objects_that_have_a_colour_are_found(objects):
    """The same images, tinted by class: nothing is wrong with the fit."""

    def tinted(images, labels):
        tints = np.random.default_rng(0).integers(0, 180, (8, 1, 1, 3))
        return (images // 4 + tints[labels]).astype(np.uint8)

    assert image_baseline(*((tinted(*split), split[1]) for split in objects)).score > 90


def test_windows_are_around_their_pixels():
    image = np.random.default_rng(0).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    found = (windows(image) * 255).round().reshape(9, 12, 3, 5, 5)
    assert windows(image).shape == (9 * 12, FEATURES)
    mirrored = np.pad(image, [(2, 2), (2, 2), (0, 0)], mode='reflect')
    for y, x in ((0, 0), (4, 7), (8, 11)):
        expected = mirrored[y : y + 5, x : x + 5].transpose(2, 0, 1)
        np.testing.assert_array_equal(found[y, x], expected)


def test_fit_of_windows_reaches_the_minimum():
    """The gradient of the penalised loss vanishes at the solution, up to the tolerance."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4000, FEATURES, generator=generator)
    labels = (features[:, 0] + torch.rand(4000, generator=generator) > 0.5).long()
    weight, bias = fit(features, labels, 3, WINDOW_PENALTY, tolerance=1e-4)
    weight.requires_grad_()
    loss = F.cross_entropy(features @ weight.T + bias, labels)
    (gradient,) = torch.autograd.grad(loss + WINDOW_PENALTY * weight.square().sum(), weight)
    assert gradient.abs().max() < 2e-4


def test_an_unfinished_fit_is_no_result(monkeypatch):
    monkeypatch.setattr(linear_baselines, '_STEPS', 2)
    features = torch.randn(400, 9, generator=torch.Generator().manual_seed(0))
    with pytest.raises(RuntimeError, match='no convergence after 2 steps'):
        fit(features, (features[:, 0] > 0).long(), 2, 1e-4)


@pytest.mark.parametrize('penalty', PENALTIES)
def test_fit_is_the_minimum(objects, penalty):
    """Of a convex function: every slope is zero, and nothing beside it is lower."""
    (train, labels), _ = objects
    features, _ = reduce_features(train, train[:1])
    labels = torch.from_numpy(labels)

    def loss(weight, bias):
        value = F.cross_entropy(F.linear(features, weight, bias), labels)
        return value + penalty * weight.square().sum()

    weight, bias = fit(features, labels, 8, penalty)
    weight.requires_grad_(), bias.requires_grad_()
    loss(weight, bias).backward()
    assert max(weight.grad.abs().max(), bias.grad.abs().max()) <= 1e-6
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        step = 0.1 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        assert loss(weight + step, bias) > loss(weight, bias)


def test_reduced_features_keep_every_inner_product(objects):
    """Of centred images, up to one scale, so that linear models stay what they were."""
    (train, _), (val, _) = objects
    features, projected = reduce_features(train, val)
    pixels, others = (torch.from_numpy(x).flatten(1).double() / 255 for x in (train, val))
    mean = pixels.mean(dim=0)
    pixels, others = pixels - mean, others - mean
    scale = (features @ features.T).trace() / (pixels @ pixels.T).trace()
    for ours, theirs in ((features, pixels), (projected, others)):
        expected = scale * theirs @ pixels.T
        error = (ours @ features.T - expected).abs().max()
        assert error < 1e-4 * expected.abs().max()
    assert features.square().mean().item() == pytest.approx(1)


def test_iou_by_hand():
    counts = np.array([[6, 2, 0, 0], [1, 3, 0, 0], [4, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(
        intersection_over_union(counts), [100 * 6 / 13, 100 * 3 / 6, 0, np.nan]
    )


def test_iou_is_that_of_mmseg():
    metrics = pytest.importorskip('mmseg.evaluation.metrics')
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 9, (4, 16, 16), generator=generator)
    predicted = torch.where(
        torch.rand(truth.shape, generator=generator) < 0.6,
        truth,
        torch.randint(0, 9, truth.shape, generator=generator),
    )
    areas = metrics.IoUMetric.intersect_and_union(predicted, truth, 9, ignore_index=255)
    expected = metrics.IoUMetric.total_area_to_metrics(*areas)['IoU'] * 100
    counts = np.zeros((9, 9), np.int64)
    np.add.at(counts, (truth.numpy(), predicted.numpy()), 1)
    np.testing.assert_allclose(intersection_over_union(counts), expected, rtol=1e-6)


def test_confusion_has_rows_of_true_classes():
    truth, predicted = np.array([[0, 1], [2, 2]], np.uint8), np.array([[0, 2], [2, 1]])
    assert confusion(truth, predicted, 3).tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 1]]


def test_folders_are_read_in_the_order_of_the_classes(objects_root, objects):
    (images, labels), (_, val_labels) = objects
    assert images.shape == (160, 64, 64, 3)
    assert np.bincount(labels).tolist() == [20] * 8 and np.bincount(val_labels).tolist() == [10] * 8
    folder = objects_root / 'imagefolder' / 'train' / TEXTURE_CLASSES[3]
    first = cv2.imread(str(sorted(folder.glob('*.png'))[0]))
    assert (images[labels == 3][0] == first).all()


def test_missing_and_broken_pictures(tmp_path):
    for load in (load_scenes, load_objects):
        with pytest.raises(UserError, match=r'no pictures: make the data with .*make_patterns\.py'):
            load(tmp_path, 'train')
    generate(tmp_path, PatternsSpec(train=2, val=1, size=64, layouts=('ade', 'imagefolder')))
    (tmp_path / 'ade' / 'annotations' / 'training' / '000001.png').write_bytes(b'')
    with pytest.raises(UserError, match=r'training/000001\.png is no picture'):
        load_scenes(tmp_path, 'train')
    next((tmp_path / 'imagefolder' / 'train').rglob('*.png')).write_bytes(b'nothing')
    with pytest.raises(UserError, match=r'\.png is no picture'):
        load_objects(tmp_path, 'train')


def test_tool(run, tmp_path, capsys, monkeypatch):
    tool = 'analysis_tools/pixel_baseline'
    monkeypatch.setattr(linear_baselines, '_PIXELS', 2000)
    generate(tmp_path / 'data', PatternsSpec(train=8, val=8, size=64, layouts=('ade',)))
    assert run(tool, tmp_path / 'data', '--json', tmp_path / 'new' / 'result.json') == 0
    result = json.loads((tmp_path / 'new' / 'result.json').read_text())
    assert result['classes'] == list(CLASSES)
    assert len(result['per_class']) == len(CLASSES)
    printed = capsys.readouterr().out
    assert 'stripes_horizontal' in printed
    assert f'{result["score"]:.2f}' in printed
    assert run(tool, tmp_path / 'nowhere') == 1
    message = capsys.readouterr().err
    assert 'make_patterns.py' in message
    assert message.count('\n') == 1
