"""The linear classifier of raw pixels: low on the patterns, high where colour is the class."""

import json

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmvim.datasets.patterns import PatternsError, PatternsSpec, generate
from mmvim.datasets.patterns.classes import TEXTURE_CLASSES
from mmvim.datasets.patterns.image_baseline import (
    PENALTIES,
    fit,
    image_baseline,
    load_split,
    reduce_features,
)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    out = tmp_path_factory.mktemp('single')
    generate(out, PatternsSpec(train=160, val=80, size=64, seed=5, layouts=('imagefolder',)))
    return out


@pytest.fixture(scope='module')
def splits(root):
    return load_split(root, 'train'), load_split(root, 'val')


def test_patterns_are_honest(splits):
    result = image_baseline(*splits)
    assert result.top1 <= 30
    assert result.top1 == max(result.top1_by_penalty.values())
    assert result.top1 == pytest.approx(np.mean(result.accuracy))  # every class equally often
    assert result.penalty in PENALTIES
    held = json.loads(json.dumps(result.to_json()))
    assert held['classes'] == list(TEXTURE_CLASSES)


def test_classes_that_have_a_colour_are_found(splits):
    """The same images, tinted by class: nothing is wrong with the fit."""

    def tinted(images, labels):
        tints = np.random.default_rng(0).integers(0, 180, (8, 1, 1, 3))
        return (images // 4 + tints[labels]).astype(np.uint8)

    painted = [(tinted(*split), split[1]) for split in splits]
    result = image_baseline(*painted)
    assert result.top1 > 90


def test_folders_are_read_in_the_order_of_the_classes(root, splits):
    (images, labels), (_, val_labels) = splits
    assert images.shape == (160, 64, 64, 3)
    assert np.bincount(labels).tolist() == [20] * 8 and np.bincount(val_labels).tolist() == [10] * 8
    folder = root / 'imagefolder' / 'train' / TEXTURE_CLASSES[3]
    first = cv2.imread(str(sorted(folder.glob('*.png'))[0]))
    assert (images[labels == 3][0] == first).all()


def test_reduced_features_keep_every_inner_product(splits):
    """Of centred images, up to one scale, so that linear models stay what they were."""
    (train, _), (val, _) = splits
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


@pytest.mark.parametrize('penalty', PENALTIES)
def test_fit_is_the_minimum(splits, penalty):
    """Of a convex function: every slope is zero, and nothing beside it is lower."""
    (train, labels), _ = splits
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


def test_missing_and_broken_pictures(root, tmp_path):
    with pytest.raises(PatternsError, match=r'no images in .*--layouts imagefolder'):
        load_split(tmp_path, 'train')
    folder = tmp_path / 'imagefolder' / 'train' / 'blobs'
    folder.mkdir(parents=True)
    (folder / '0.png').write_bytes(b'nothing')
    with pytest.raises(PatternsError, match=r'0\.png is no picture'):
        load_split(tmp_path, 'train')
