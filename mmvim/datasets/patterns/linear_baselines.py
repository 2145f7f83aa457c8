"""Linear classifiers of raw pixels: the measure of the dataset's honesty.

Multinomial logistic regression, once on each pixel's RGB and its 5x5 neighbourhood (for the scenes;
such a classifier is a 5x5 convolution), once on all pixels of an image (for the single objects). If
one of them does well, colour or place give the classes away, and a high score of a network proves
nothing.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from mmvim.datasets.patterns.layouts import ADE_FOLDERS, Split
from mmvim.datasets.patterns.textures import CLASSES, TEXTURE_CLASSES
from mmvim.errors import UserError

WINDOW = 5
FEATURES = 3 * WINDOW**2
# Penalties on the squared weights: of windows, whose features are standardised; of whole images,
# whose features are scaled so that 1 is strong.
WINDOW_PENALTY = 1e-4
PENALTIES = (1e-4, 1e-2, 1.0)

_PIXELS = 60_000  # sampled for training, over all images
_STEPS = 2000

Images = NDArray[np.uint8]


class BaselineResult(NamedTuple):
    """Result of a linear classifier, in per cent.

    Attributes:
        per_class (list[float | None]): IoU or accuracy, in the order of the labels; None for a
            class that is nowhere.
        score (float): Mean IoU, or top-1 accuracy over all images.
    """

    per_class: list[float | None]
    score: float


def _read(paths: Sequence[Path], mode: int = cv2.IMREAD_COLOR) -> Images:
    """Pictures of one size: (B, H, W, 3), BGR, or (B, H, W) of label maps read as they are."""
    pictures: list[Any] = [cv2.imread(str(path), mode) for path in paths]
    unread = [path for path, picture in zip(paths, pictures) if picture is None]
    if unread or not paths:
        what = f'{unread[0]} is no picture' if unread else 'there are no pictures'
        raise UserError(f'{what}: make the data with tools/dataset_converters/make_patterns.py')
    return np.stack(pictures)


def load_scenes(root: Path, split: Split) -> tuple[Images, Images]:
    """Images (B, H, W, 3), BGR, and label maps (B, H, W) of the ADE20K layout, both uint8.

    Raises:
        UserError: If there are none, or one is broken.
    """
    images, labels = (
        sorted((root / 'ade' / kind / ADE_FOLDERS[split]).glob('*.png'))
        for kind in ('images', 'annotations')
    )
    return _read(images), _read(labels, cv2.IMREAD_UNCHANGED)


def load_objects(root: Path, split: Split) -> tuple[Images, NDArray[np.int64]]:
    """Images (B, H, W, 3) uint8, BGR, and labels (B,), from 0, of the ImageFolder layout.

    Raises:
        UserError: If there are none, or one is broken.
    """
    paths = sorted((root / 'imagefolder' / split).glob('*/*.png'))
    labels = [TEXTURE_CLASSES.index(path.parent.name) for path in paths]
    return _read(paths), np.array(labels, np.int64)


def fit(
    features: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    penalty: float,
    tolerance: float = 1e-6,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit a logistic regression by L-BFGS, to convergence.

    Args:
        features (Tensor): (n, R).
        labels (Tensor): (n,), int64.
        num_classes (int): K.
        penalty (float): Factor of the sum of squared weights.
        tolerance (float): Largest slope that may be left, of a loss of order 1.

    Returns:
        tuple: Weights (K, R) and biases (K,), of the dtype of the features.

    Raises:
        RuntimeError: If a larger slope is left: a score would be lower than it can be.
    """
    weight = torch.zeros(num_classes, features.shape[1], dtype=features.dtype, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=features.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_STEPS,
        history_size=20,
        tolerance_grad=tolerance,
        tolerance_change=0.0,
        line_search_fn='strong_wolfe',
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(features, weight, bias), labels)
        loss = loss + penalty * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    closure()
    slope = max(float(x.grad.abs().max()) for x in (weight, bias) if x.grad is not None)
    if slope > tolerance:
        raise RuntimeError(f'no convergence after {_STEPS} steps: a slope of {slope:.1e} is left')
    return weight.detach(), bias.detach()


def windows(image: Images) -> torch.Tensor:
    """The window around each pixel of an image (H, W, 3): (H·W, FEATURES), of 0 to 1.

    Borders see their mirror image.
    """
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    return F.unfold(F.pad(pixels, [WINDOW // 2] * 4, mode='reflect'), WINDOW)[0].T


def confusion(truth: NDArray[Any], predicted: NDArray[Any], num_classes: int) -> NDArray[np.int64]:
    """How often each class is taken for each: (K, K), rows are the true classes."""
    pairs = truth.ravel().astype(np.int64) * num_classes + predicted.ravel()
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def intersection_over_union(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """IoU (K,) in per cent over a data set as mmseg's ``IoUMetric`` has it; NaN if nowhere."""
    hits = np.diagonal(counts).astype(np.float64)
    union = counts.sum(axis=0) + counts.sum(axis=1) - hits
    return 100 * np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)


def pixel_baseline(train: tuple[Images, Images], val: tuple[Images, Images]) -> BaselineResult:
    """Segment by a classifier of windows.

    Args:
        train (tuple): What :func:`load_scenes` returns; some pixels of every image are drawn.
        val (tuple): The same, of the validation split; all of its pixels count.
    """
    rng, each = np.random.default_rng(0), max(1, _PIXELS // len(train[0]))
    sample = []
    for image, truth in zip(*train):
        chosen = rng.integers(0, truth.size, each)
        sample.append((windows(image)[chosen], torch.from_numpy(truth.ravel()[chosen])))
    features, labels = (torch.cat(parts) for parts in zip(*sample))
    mean, std = features.mean(dim=0), features.std(dim=0).clamp_min(1e-6)
    standard = ((features - mean) / std).double()
    weight, bias = fit(standard, labels.long(), len(CLASSES), WINDOW_PENALTY, tolerance=1e-4)
    counts = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
    for image, truth in zip(*val):
        scores = F.linear((windows(image) - mean) / std, weight.float(), bias.float())
        counts += confusion(truth, scores.argmax(dim=1).numpy(), len(CLASSES))
    iou = intersection_over_union(counts)
    per_class = [None if np.isnan(x) else round(float(x), 2) for x in iou]
    return BaselineResult(per_class, round(float(np.nanmean(iou)), 2))


def reduce_features(train: Images, val: Images) -> tuple[torch.Tensor, torch.Tensor]:
    """Centred pixels in the basis that the training images span.

    The best weights of a penalised linear model lie in that span, so that nothing is lost: inner
    products of images, and with them every fit and prediction, stay what they were.

    Returns:
        tuple: Features (B, R) and (C, R) float64, R at most B, of mean square 1 in training.
    """
    pixels, others = (torch.from_numpy(x).flatten(1).float() / 255 for x in (train, val))
    mean = pixels.mean(dim=0)
    pixels, others = pixels - mean, others - mean  # (B, 3·H·W), (C, 3·H·W)
    values, vectors = torch.linalg.eigh((pixels @ pixels.T).double())
    kept = values > 1e-6 * values[-1]
    lengths, vectors = values[kept].sqrt(), vectors[:, kept]
    features, projected = vectors * lengths, (others @ pixels.T).double() @ (vectors / lengths)
    scale = features.square().mean().sqrt()
    return features / scale, projected / scale


def image_baseline(
    train: tuple[Images, NDArray[np.int64]], val: tuple[Images, NDArray[np.int64]]
) -> BaselineResult:
    """Classify whole images by all of their pixels, with the best of the penalties.

    Args:
        train (tuple): What :func:`load_objects` returns.
        val (tuple): The same, of the validation split, which also chooses the penalty.
    """
    features, projected = reduce_features(train[0], val[0])
    labels, truth = torch.from_numpy(train[1]), torch.from_numpy(val[1])
    results = []
    for penalty in PENALTIES:
        weight, bias = fit(features, labels, len(TEXTURE_CLASSES), penalty)
        hits = 100 * (F.linear(projected, weight, bias).argmax(dim=1) == truth).double()
        per_class = [round(float(hits[truth == k].mean()), 2) for k in range(len(TEXTURE_CLASSES))]
        results.append(BaselineResult([*per_class], float(hits.mean())))
    return max(results, key=lambda result: result.score)
