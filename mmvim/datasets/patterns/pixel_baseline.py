"""How well a classifier of single pixels segments: the measure of a dataset's honesty.

Multinomial logistic regression on a pixel's RGB and its 5x5 neighbourhood (75 numbers). Such a
classifier is a 5x5 convolution, which is how it is evaluated. If it does well, colour gives the
classes away, and a high score of a network proves nothing.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from mmvim.datasets.patterns.classes import CLASSES
from mmvim.datasets.patterns.layouts import PatternsError

WINDOW = 5
FEATURES = 3 * WINDOW**2

_PIXELS = 60_000  # sampled for training, over all images
_WEIGHT_DECAY = 1e-4
_STEPS = 100

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class BaselineResult:
    """What the pixel classifier reached.

    Attributes:
        classes: Names, background included.
        iou: Intersection over union in per cent; None for a class that neither the labels nor
            the predictions contain.
        miou: Mean of those that are not None.
        weighting: The variant that reached it: 'pixels' if every pixel counted alike in
            training, 'classes' if every class did.
        miou_by_weighting: Mean of both variants.
    """

    classes: tuple[str, ...]
    iou: tuple[float | None, ...]
    miou: float
    weighting: str
    miou_by_weighting: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """The result as JSON types."""
        return {**asdict(self), 'classes': list(self.classes), 'iou': list(self.iou)}


@dataclass(frozen=True)
class PixelClassifier:
    """A linear classifier of windows, as a convolution on images of 0 to 1.

    Attributes:
        weight: (K, 3, WINDOW, WINDOW) float32.
        bias: (K,) float32.
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def predict(self, images: Images) -> torch.Tensor:
        """Classify every pixel; borders see their mirror image.

        Args:
            images: (B, H, W, 3) uint8, RGB.

        Returns:
            (B, H, W) int64.
        """
        pad = (WINDOW // 2,) * 4
        padded = F.pad(_to_float(images), pad, mode='reflect')
        return F.conv2d(padded, self.weight, self.bias).argmax(dim=1)


def _to_float(images: Images) -> torch.Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float32 of 0 to 1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def sample_windows(
    images: Images, labels: Images, pixels: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw windows around random pixels, equally many from every image.

    Args:
        images: (B, H, W, 3) uint8, RGB.
        labels: (B, H, W) uint8.
        pixels: Rough number of windows.
        seed: Seed of the draw.

    Returns:
        Windows (n, FEATURES) float32 of 0 to 1, in the order of a convolution's weight, and the
        labels (n,) int64 of their middle pixels.
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
    return features.float() / 255, torch.from_numpy(labels[image, y, x].astype(np.int64))


def fit(
    features: torch.Tensor, labels: torch.Tensor, num_classes: int, weighting: str
) -> PixelClassifier:
    """Fit the logistic regression on standardised features.

    Args:
        features: (n, FEATURES) float32.
        labels: (n,) int64.
        num_classes: K.
        weighting: 'pixels' or 'classes', see ``BaselineResult``.

    Returns:
        The classifier, for features that are not standardised.
    """
    mean, std = features.mean(dim=0), features.std(dim=0).clamp_min(1e-6)
    inputs = (features - mean) / std
    weights = None
    if weighting == 'classes':
        share = torch.bincount(labels, minlength=num_classes).float()
        # A class that the sample lacks never occurs in the loss; its weight must only be finite.
        weights = share.sum() / (num_classes * share.clamp_min(1))
    weight = torch.zeros(num_classes, FEATURES, requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_STEPS, line_search_fn='strong_wolfe')

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(inputs, weight, bias), labels, weights)
        loss = loss + _WEIGHT_DECAY * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        raw = weight / std
        return PixelClassifier(raw.reshape(num_classes, 3, WINDOW, WINDOW), bias - raw @ mean)


def confusion(
    classifier: PixelClassifier, images: Images, labels: Images, num_classes: int, batch: int = 16
) -> NDArray[np.int64]:
    """Count pixels by class and prediction.

    Args:
        classifier: The classifier.
        images: (B, H, W, 3) uint8, RGB.
        labels: (B, H, W) uint8.
        num_classes: K.
        batch: Images classified at once.

    Returns:
        (K, K); rows are the true classes.
    """
    counts = np.zeros(num_classes**2, np.int64)
    for start in range(0, len(images), batch):
        predicted = classifier.predict(images[start : start + batch]).numpy()
        truth = labels[start : start + batch].astype(np.int64)
        counts += np.bincount((truth * num_classes + predicted).ravel(), minlength=len(counts))
    return counts.reshape(num_classes, num_classes)


def intersection_over_union(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Per-class IoU in per cent over a whole dataset, as mmseg's ``IoUMetric`` has it.

    Args:
        counts: (K, K) of ``confusion``.

    Returns:
        (K,), NaN for a class that is neither there nor predicted.
    """
    hits = np.diagonal(counts).astype(np.float64)
    union = counts.sum(axis=0) + counts.sum(axis=1) - hits
    return 100 * np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)


def pixel_baseline(
    train: tuple[Images, Images],
    val: tuple[Images, Images],
    classes: tuple[str, ...] = CLASSES,
    seed: int = 0,
) -> BaselineResult:
    """Fit the pixel classifier both ways and report the better one, as judged by ``val`` itself.

    Args:
        train: Images (B, H, W, 3) uint8, RGB, and labels (B, H, W) uint8.
        val: The same, of the validation split; all of its pixels count.
        classes: Names, in the order of the labels.
        seed: Seed of the sample of training pixels.

    Returns:
        The result.
    """
    features, labels = sample_windows(*train, _PIXELS, seed)
    ious = {}
    for weighting in ('pixels', 'classes'):
        classifier = fit(features, labels, len(classes), weighting)
        ious[weighting] = intersection_over_union(confusion(classifier, *val, len(classes)))
    means = {weighting: round(float(np.nanmean(iou)), 2) for weighting, iou in ious.items()}
    best = max(means, key=lambda weighting: means[weighting])
    iou = tuple(None if np.isnan(value) else round(float(value), 2) for value in ious[best])
    return BaselineResult(classes, iou, means[best], best, means)


def load_split(root: Path, split: str) -> tuple[Images, Images]:
    """Read a split of a patterns dataset in the ADE20K layout.

    Args:
        root: Folder of the dataset.
        split: 'training' or 'validation'.

    Returns:
        Images (B, H, W, 3) uint8, RGB, and labels (B, H, W) uint8.

    Raises:
        PatternsError: If a picture is missing, unreadable or of another size than its labels.
    """
    folder = root / 'ade' / 'images' / split
    paths = sorted(folder.glob('*.png'))
    if not paths:
        raise PatternsError(
            f'no images in {folder}: make the data with '
            'tools/dataset_converters/make_patterns.py --layouts ade'
        )
    images: list[Images] = []
    labels: list[Images] = []
    for path in paths:
        label_path = root / 'ade' / 'annotations' / split / path.name
        image = _read(path, cv2.IMREAD_COLOR)
        label = _read(label_path, cv2.IMREAD_UNCHANGED)
        if label.shape != image.shape[:2] or label.max() >= len(CLASSES):
            raise PatternsError(f'{label_path} is not the label map of {path}')
        if images and image.shape != images[0].shape:
            raise PatternsError(f'{path} has another size than the images before it')
        images.append(image[..., ::-1])
        labels.append(label)
    return np.stack(images), np.stack(labels)


def _read(path: Path, mode: int) -> Images:
    """Read a picture with OpenCV, BGR where it has colours."""
    data = np.fromfile(path, np.uint8) if path.is_file() else np.empty(0, np.uint8)
    picture = cv2.imdecode(data, mode) if data.size else None
    if picture is None:
        raise PatternsError(f'{path} is missing or no picture: make the data again with --force')
    return picture.astype(np.uint8, copy=False)
