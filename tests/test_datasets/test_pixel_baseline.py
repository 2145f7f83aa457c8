"""The pixel baseline: low on the patterns, high where colour is the class, and correct."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmvim.datasets.patterns import CLASSES, PALETTE, PatternsError, PatternsSpec, generate
from mmvim.datasets.patterns.pixel_baseline import (
    FEATURES,
    confusion,
    fit,
    intersection_over_union,
    load_split,
    pixel_baseline,
    sample_windows,
)

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    out = tmp_path_factory.mktemp('baseline')
    generate(out, PatternsSpec(train=160, val=40, seed=5, layouts=('ade',)))
    return out


@pytest.fixture(scope='module')
def splits(root):
    return load_split(root, 'training'), load_split(root, 'validation')


def test_patterns_are_honest(splits):
    result = pixel_baseline(*splits)
    assert result.miou <= 25
    assert result.miou == max(result.miou_by_weighting.values())
    assert result.miou == pytest.approx(np.mean(result.iou), abs=0.01)


def test_baseline_finds_classes_that_have_a_colour(splits):
    """The same label maps, painted by class with a lot of noise: nothing is wrong with the fit."""

    def painted(labels, seed):
        noise = np.random.default_rng(seed).normal(0, 30, (*labels.shape, 3))
        return np.clip(np.array(PALETTE)[labels] + noise, 0, 255).astype(np.uint8)

    (_, train), (_, val) = splits
    result = pixel_baseline((painted(train, 0), train), (painted(val, 1), val))
    assert result.miou > 60
    assert min(result.iou) > 40


def test_classifier_is_the_logistic_regression_of_windows(splits):
    """Convolution of an image equals the linear map of its windows, standardisation included."""
    (images, labels), _ = splits
    features, targets = sample_windows(images, labels, 20_000, seed=0)
    assert features.shape == (len(targets), FEATURES)
    classifier = fit(features, targets, len(CLASSES), 'classes')
    windows = F.unfold(torch.from_numpy(images[:1]).permute(0, 3, 1, 2).float() / 255, 5)
    logits = classifier.weight.reshape(len(CLASSES), -1) @ windows[0] + classifier.bias[:, None]
    inner = classifier.predict(images[:1])[0, 2:-2, 2:-2]
    assert (logits.argmax(dim=0).reshape(inner.shape) == inner).float().mean() > 0.999
    assert classifier.predict(images[:1]).shape == labels[:1].shape


def test_windows_belong_to_their_labels():
    """Images that hold their own label as colour give windows whose middle is the label."""
    labels = np.random.default_rng(0).integers(0, 9, (3, 20, 30)).astype(np.uint8)
    images = np.repeat(labels[..., None], 3, axis=-1)
    features, targets = sample_windows(images, labels, 300, seed=0)
    middle = features.reshape(-1, 3, 5, 5)[:, :, 2, 2] * 255
    assert torch.equal(middle.round().long(), targets[:, None].expand(-1, 3))


def test_fit_reaches_the_minimum():
    """The gradient of the penalised loss vanishes at the solution."""
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(4000, FEATURES, generator=generator)
    labels = (features[:, 0] * 2 + torch.rand(4000, generator=generator)).long()
    classifier = fit(features, labels, 3, 'pixels')
    weight = classifier.weight.reshape(3, -1).clone().requires_grad_()
    loss = F.cross_entropy(features @ weight.T + classifier.bias, labels)
    penalty = 1e-4 * (weight * features.std(dim=0)).square().sum()
    (gradient,) = torch.autograd.grad(loss + penalty, weight)
    assert gradient.abs().max() < 2e-4


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


def test_confusion_counts_every_pixel(splits):
    train, (images, labels) = splits
    classifier = fit(*sample_windows(*train, 5000, seed=0), len(CLASSES), 'classes')
    counts = confusion(classifier, images, labels, len(CLASSES), batch=7)
    np.testing.assert_array_equal(
        counts.sum(axis=1), np.bincount(labels.ravel(), minlength=len(CLASSES))
    )
    np.testing.assert_array_equal(
        counts, confusion(classifier, images, labels, len(CLASSES), batch=40)
    )


@pytest.fixture
def cli(monkeypatch):
    """The main function of the command line, given arguments."""
    path = REPOSITORY / 'tools' / 'analysis_tools' / 'pixel_baseline.py'
    spec = importlib.util.spec_from_file_location('pixel_baseline_tool', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments):
        monkeypatch.setattr('sys.argv', ['pixel_baseline.py', *map(str, arguments)])
        return module.main()

    return run


def test_cli(cli, root, tmp_path, capsys):
    assert cli(root, '--json', tmp_path / 'new' / 'result.json') == 0
    result = json.loads((tmp_path / 'new' / 'result.json').read_text())
    assert result['classes'] == list(CLASSES)
    assert len(result['iou']) == len(CLASSES)
    printed = capsys.readouterr().out
    assert 'stripes_horizontal' in printed
    assert f'{result["miou"]:.2f}' in printed


def test_cli_without_data(cli, tmp_path, capsys):
    assert cli(tmp_path / 'nowhere') == 2
    message = capsys.readouterr().err
    assert 'make_patterns.py' in message
    assert message.count('\n') == 1


def test_a_broken_picture_is_named(tmp_path):
    generate(tmp_path, PatternsSpec(train=2, val=1, size=64, layouts=('ade',)))
    broken = tmp_path / 'ade' / 'annotations' / 'training' / '000001.png'
    broken.write_bytes(b'')
    with pytest.raises(PatternsError, match=r'000001\.png is missing or no picture'):
        load_split(tmp_path, 'training')
