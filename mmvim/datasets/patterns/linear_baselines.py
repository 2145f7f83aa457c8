"""Linear classifiers of raw pixels: the measure of the dataset's honesty.

Multinomial logistic regression, once on each pixel's RGB and its 5x5 neighbourhood (for the scenes;
such a classifier is a 5x5 convolution, which is how it is evaluated), once on all pixels of an
image (for the single objects). If one of them does well, colour or place give the classes away, and
a high score of a network proves nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from mmvim.datasets.patterns.classes import CLASSES, TEXTURE_CLASSES
from mmvim.datasets.patterns.layouts import ADE_FOLDERS, Split
from mmvim.errors import UserError

WINDOW = 5
FEATURES = 3 * WINDOW**2
# Largest slope that is left where a fit has converged, of a loss of order 1.
TOLERANCE = 1e-6
# Penalties on the squared weights of whole images, whose features are scaled so that 1 is strong.
PENALTIES = (1e-4, 1e-2, 1.0)

_WINDOW_PENALTY, _WINDOW_TOLERANCE = 1e-4, 1e-4
_PIXELS = 60_000  # sampled for training, over all images
_STEPS = 2000

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class BaselineResult:
    """Result of a linear classifier; of several variants of its training the best one.

    Attributes:
        classes (tuple[str, ...]): Names.
        per_class (tuple[float | None, ...]): IoU or accuracy in per cent; None for a class that is
            nowhere.
        score (float): Mean IoU, or top-1 accuracy over all images.
        scores (dict[str, float]): The score of every variant: whether every pixel or every class
            counted alike in training, or the penalty.
    """

    classes: tuple[str, ...]
    per_class: tuple[float | None, ...]
    score: float
    scores: dict[str, float]

    @classmethod
    def best(
        cls, classes: Sequence[str], values: dict[str, NDArray[Any]], scores: dict[str, float]
    ) -> 'BaselineResult':
        """Of several variants the one with the best score, as judged by the validation split."""
        best = values[max(scores, key=lambda name: scores[name])]
        per_class = tuple(None if np.isnan(x) else round(float(x), 2) for x in best)
        return cls(tuple(classes), per_class, max(scores.values()), scores)


def _read(paths: Sequence[Path], mode: int = cv2.IMREAD_COLOR) -> Images:
    """Pictures of one size: (B, H, W, 3), BGR, or (B, H, W) of label maps read as they are."""
    pictures: list[Images] = []
    for path in paths:
        data = np.fromfile(path, np.uint8) if path.is_file() else np.empty(0, np.uint8)
        picture = cv2.imdecode(data, mode) if data.size else None
        if picture is None:
            raise UserError(f'{path} is missing or no picture: make the data again with --force')
        if pictures and picture.shape != pictures[0].shape:
            raise UserError(f'{path} has another size than the pictures before it')
        pictures.append(picture.astype(np.uint8, copy=False))
    return np.stack(pictures)


def _find(folder: Path, pattern: str, layout: str) -> list[Path]:
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise UserError(
            f'no images in {folder}: make the data with '
            f'tools/dataset_converters/make_patterns.py --layouts {layout}'
        )
    return paths


def load_scenes(root: Path, split: Split) -> tuple[Images, Images]:
    """Read a split of a patterns dataset in the ADE20K layout.

    Args:
        root (Path): Folder of the dataset.
        split (str): 'train' or 'val'.

    Returns:
        tuple: Images (B, H, W, 3), BGR, and labels (B, H, W), both uint8.

    Raises:
        UserError: If pictures are missing, unreadable, or do not fit their labels.
    """
    folder, maps = (root / 'ade' / kind / ADE_FOLDERS[split] for kind in ('images', 'annotations'))
    paths = _find(folder, '*.png', 'ade')
    images = _read(paths)
    labels = _read([maps / path.name for path in paths], cv2.IMREAD_UNCHANGED)
    if labels.shape != images.shape[:3] or labels.max() >= len(CLASSES):
        raise UserError(f'the pictures in {maps} are not the label maps of those in {folder}')
    return images, labels


def load_objects(root: Path, split: Split) -> tuple[Images, NDArray[np.int64]]:
    """Read a split of a patterns dataset in the ImageFolder layout.

    Args:
        root (Path): Folder of the dataset.
        split (str): 'train' or 'val'.

    Returns:
        tuple: Images (B, H, W, 3) uint8, BGR, and labels (B,), numbers of ``TEXTURE_CLASSES``.

    Raises:
        UserError: If pictures are missing, unreadable or of different sizes.
    """
    paths = _find(root / 'imagefolder' / split, '*/*.png', 'imagefolder')
    labels = [TEXTURE_CLASSES.index(path.parent.name) for path in paths]
    return _read(paths), np.array(labels, np.int64)


def fit(
    features: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    penalty: float,
    weights: torch.Tensor | None = None,
    tolerance: float = TOLERANCE,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit a logistic regression by L-BFGS, to convergence.

    Args:
        features (Tensor): (n, R).
        labels (Tensor): (n,), int64.
        num_classes (int): K.
        penalty (float): Factor of the sum of squared weights.
        weights (Tensor | None): (K,), of the classes in the loss. Defaults to None: all alike.
        tolerance (float): Largest slope that may be left.

    Returns:
        tuple: Weights (K, R) and biases (K,), of the dtype of the features.
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
        loss = F.cross_entropy(F.linear(features, weight, bias), labels, weights)
        loss = loss + penalty * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    closure()
    slope = max(float(x.grad.abs().max()) for x in (weight, bias) if x.grad is not None)
    if slope > tolerance:
        raise RuntimeError(
            f'the linear classifier has not converged after {_STEPS} steps: a slope of '
            f'{slope:.1e} is left'
        )
    return weight.detach(), bias.detach()


def sample_windows(
    images: Images, labels: Images, pixels: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw windows around random pixels, equally many from every image, ``pixels`` in all about.

    Returns:
        tuple: Windows (n, FEATURES), float64 of 0 to 1, in the order of a convolution's weight, and
        the labels (n,) int64 of their middle pixels.
    """
    count, height, width = labels.shape
    each = max(1, pixels // count)
    rng = np.random.default_rng(seed)
    half = WINDOW // 2
    image = np.repeat(np.arange(count), each)
    y = rng.integers(half, height - half, count * each)
    x = rng.integers(half, width - half, count * each)
    near = np.arange(-half, half + 1)
    # (n, WINDOW, WINDOW, 3) -> (n, 3, WINDOW, WINDOW)
    windows = images[
        image[:, None, None], y[:, None, None] + near[:, None], x[:, None, None] + near
    ].transpose(0, 3, 1, 2)
    features = torch.from_numpy(np.ascontiguousarray(windows)).reshape(-1, FEATURES)
    return features.double() / 255, torch.from_numpy(labels[image, y, x].astype(np.int64))


def fit_windows(
    features: torch.Tensor, labels: torch.Tensor, num_classes: int, equal_classes: bool
) -> torch.nn.Conv2d:
    """Fit the classifier of windows, on standardised features.

    Args:
        features (Tensor): (n, FEATURES).
        labels (Tensor): (n,), int64.
        num_classes (int): K.
        equal_classes (bool): Let every class count alike in training, not every pixel.

    Returns:
        Conv2d: Images (B, 3, H, W) of 0 to 1, not standardised, to scores (B, K, H, W); borders see
        their mirror image.
    """
    mean, std = features.mean(dim=0), features.std(dim=0).clamp_min(1e-6)
    weights = None
    if equal_classes:
        share = torch.bincount(labels, minlength=num_classes).to(features.dtype)
        # A class that the sample lacks never occurs in the loss; its weight must only be finite.
        weights = share.sum() / (num_classes * share.clamp_min(1))
    inputs = (features - mean) / std
    weight, bias = fit(inputs, labels, num_classes, _WINDOW_PENALTY, weights, _WINDOW_TOLERANCE)
    raw = weight / std
    classifier = torch.nn.Conv2d(
        3, num_classes, WINDOW, padding=WINDOW // 2, padding_mode='reflect'
    ).requires_grad_(False)
    weight = raw.reshape(classifier.weight.shape)
    classifier.load_state_dict(dict(weight=weight, bias=bias - raw @ mean))
    return classifier


def confusion(
    classifier: torch.nn.Module, images: Images, labels: Images, num_classes: int, batch: int = 16
) -> NDArray[np.int64]:
    """Count pixels of images (B, H, W, 3): (K, K), rows are the true classes."""
    counts = np.zeros(num_classes**2, np.int64)
    for start in range(0, len(images), batch):
        inputs = torch.from_numpy(images[start : start + batch]).permute(0, 3, 1, 2).float() / 255
        predicted = classifier(inputs).argmax(dim=1).numpy()
        truth = labels[start : start + batch].astype(np.int64)
        counts += np.bincount((truth * num_classes + predicted).ravel(), minlength=len(counts))
    return counts.reshape(num_classes, num_classes)


def intersection_over_union(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """IoU (K,) in per cent over a data set as mmseg's ``IoUMetric`` has it; NaN if nowhere."""
    hits = np.diagonal(counts).astype(np.float64)
    union = counts.sum(axis=0) + counts.sum(axis=1) - hits
    return 100 * np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)


def pixel_baseline(
    train: tuple[Images, Images],
    val: tuple[Images, Images],
    classes: Sequence[str] = CLASSES,
    seed: int = 0,
) -> BaselineResult:
    """Segment by the classifier of windows, trained with equal pixels and with equal classes.

    Args:
        train (tuple): What :func:`load_scenes` returns.
        val (tuple): The same, of the validation split; all of its pixels count.
        classes (Sequence[str]): Names, in the order of the labels.
        seed (int): Seed of the sample of training pixels.
    """
    features, labels = sample_windows(*train, _PIXELS, seed)
    ious = {}
    for variant in ('pixels', 'classes'):
        classifier = fit_windows(features, labels, len(classes), variant == 'classes')
        ious[variant] = intersection_over_union(confusion(classifier, *val, len(classes)))
    means = {variant: round(float(np.nanmean(iou)), 2) for variant, iou in ious.items()}
    return BaselineResult.best(classes, ious, means)


def reduce_features(train: Images, val: Images) -> tuple[torch.Tensor, torch.Tensor]:
    """Centred pixels in the basis that the training images span.

    The best weights of a penalised linear model lie in that span, so that nothing is lost: inner
    products of images, and with them every fit and prediction, stay what they were.

    Returns:
        tuple: Features (B, R) and (C, R) float64, R at most B, of mean square 1 in training.
    """
    pixels = torch.from_numpy(train).flatten(1).float() / 255  # (B, 3·H·W)
    mean = pixels.mean(dim=0)
    pixels -= mean
    others = torch.from_numpy(val).flatten(1).float() / 255 - mean  # (C, 3·H·W)
    gram = (pixels @ pixels.T).double()  # (B, B)
    values, vectors = torch.linalg.eigh(gram)
    kept = values > 1e-6 * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    features = vectors * values.sqrt()
    projected = (others @ pixels.T).double() @ (vectors / values.sqrt())
    scale = features.square().mean().sqrt()
    return features / scale, projected / scale


def image_baseline(
    train: tuple[Images, NDArray[np.int64]],
    val: tuple[Images, NDArray[np.int64]],
    classes: Sequence[str] = TEXTURE_CLASSES,
) -> BaselineResult:
    """Classify whole images by all of their pixels, with every penalty.

    Args:
        train (tuple): What :func:`load_objects` returns.
        val (tuple): The same, of the validation split.
        classes (Sequence[str]): Names, in the order of the labels.
    """
    features, projected = reduce_features(train[0], val[0])
    labels, truth = torch.from_numpy(train[1]), torch.from_numpy(val[1])
    accuracies, top1 = {}, {}
    for penalty in PENALTIES:
        weight, bias = fit(features, labels, len(classes), penalty)
        hits = 100 * (F.linear(projected, weight, bias).argmax(dim=1) == truth).double()
        name = f'penalty {penalty:g}'
        top1[name] = float(hits.mean())
        accuracies[name] = np.array([float(hits[truth == k].mean()) for k in range(len(classes))])
    return BaselineResult.best(classes, accuracies, top1)
