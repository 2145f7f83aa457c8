"""How well a linear classifier of raw pixels tells the single objects: a measure of honesty.

Multinomial logistic regression on all colour values of an image, with an L2 penalty, to
convergence. If it does well, colour or place give the classes away, and a high score of a
network proves nothing.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from mmvim.datasets.patterns.classes import TEXTURE_CLASSES
from mmvim.datasets.patterns.layouts import PatternsError

# Penalties on the squared weights; features are scaled so that 1 is a strong one.
PENALTIES = (1e-4, 1e-2, 1.0)
_STEPS = 2000
# Largest slope that is left where a fit has converged, of a loss of order 1.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class LinearResult:
    """What the linear classifier reached.

    Attributes:
        classes: Names.
        accuracy: Share of each class that is recognised, in per cent.
        top1: Share of all images that are, in per cent.
        penalty: The one that reached it.
        top1_by_penalty: Of every penalty that was tried.
    """

    classes: tuple[str, ...]
    accuracy: tuple[float, ...]
    top1: float
    penalty: float
    top1_by_penalty: dict[float, float]

    def to_json(self) -> dict[str, Any]:
        """The result as JSON types."""
        return {**asdict(self), 'classes': list(self.classes), 'accuracy': list(self.accuracy)}


def load_split(root: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read a split of a patterns dataset in the ImageFolder layout.

    Args:
        root: Folder of the dataset.
        split: 'train' or 'val'.

    Returns:
        Images (B, H, W, 3) uint8 and labels (B,) int64, numbers of ``TEXTURE_CLASSES``.

    Raises:
        PatternsError: If pictures are missing, unreadable or of different sizes.
    """
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    for label, name in enumerate(TEXTURE_CLASSES):
        for path in sorted((root / 'imagefolder' / split / name).glob('*.png')):
            image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
            if image is None:
                raise PatternsError(f'{path} is no picture: make the data again with --force')
            if images and image.shape != images[0].shape:
                raise PatternsError(f'{path} has another size than the images before it')
            images.append(image.astype(np.uint8, copy=False))
            labels.append(label)
    if not images:
        raise PatternsError(
            f'no images in {root / "imagefolder" / split}: make the data with '
            'tools/dataset_converters/make_patterns.py --layouts imagefolder'
        )
    return np.stack(images), np.array(labels, np.int64)


def reduce_features(
    train: NDArray[np.uint8], val: NDArray[np.uint8]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Centred pixels in the basis that the training images span.

    The best weights of a penalised linear model lie in that span, so that nothing is lost: inner
    products of images, and with them every fit and prediction, stay what they were.

    Args:
        train: (B, H, W, 3) uint8.
        val: (C, H, W, 3) uint8.

    Returns:
        Features (B, R) and (C, R) float64, R at most B, of mean square 1 over the training images.
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


def fit(
    features: torch.Tensor, labels: torch.Tensor, num_classes: int, penalty: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit the logistic regression by L-BFGS.

    Args:
        features: (B, R) float64.
        labels: (B,) int64.
        num_classes: K.
        penalty: Factor of the sum of squared weights.

    Returns:
        Weights (K, R) and biases (K,), float64.

    Raises:
        RuntimeError: If the fit does not converge.
    """
    weight = torch.zeros(num_classes, features.shape[1], dtype=features.dtype, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=features.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_STEPS,
        history_size=20,
        tolerance_grad=TOLERANCE,
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
    if slope > TOLERANCE:
        raise RuntimeError(
            f'the linear classifier has not converged after {_STEPS} steps with penalty {penalty}: '
            f'a slope of {slope:.1e} is left'
        )
    return weight.detach(), bias.detach()


def image_baseline(
    train: tuple[NDArray[np.uint8], NDArray[np.int64]],
    val: tuple[NDArray[np.uint8], NDArray[np.int64]],
    classes: tuple[str, ...] = TEXTURE_CLASSES,
) -> LinearResult:
    """Fit with every penalty and report the best one, as judged by ``val`` itself.

    Args:
        train: Images (B, H, W, 3) uint8 and labels (B,) int64.
        val: The same, of the validation split.
        classes: Names, in the order of the labels.

    Returns:
        The result.
    """
    features, projected = reduce_features(train[0], val[0])
    labels, truth = torch.from_numpy(train[1]), torch.from_numpy(val[1])
    hits = {}
    for penalty in PENALTIES:
        weight, bias = fit(features, labels, len(classes), penalty)
        hits[penalty] = F.linear(projected, weight, bias).argmax(dim=1) == truth
    top1 = {penalty: 100 * float(hit.double().mean()) for penalty, hit in hits.items()}
    best = max(top1, key=lambda penalty: top1[penalty])
    accuracy = tuple(
        100 * float(hits[best][truth == label].double().mean()) for label in range(len(classes))
    )
    return LinearResult(classes, accuracy, top1[best], best, top1)
