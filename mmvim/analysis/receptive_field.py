"""Effective receptive fields: which pixels the centre of a feature map depends on, and how much."""

from __future__ import annotations

from collections.abc import Callable

import torch


def effective_receptive_field(
    features: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor
) -> torch.Tensor:
    """Measure the effective receptive field of the centre token.

    The gradient of the centre token's features, summed over channels, with respect to every
    pixel: absolute, summed over colours, averaged over images (Luo et al., arXiv 1701.04128; as
    VMamba, arXiv 2401.10166, draws it).

    Args:
        features (Callable): Images (B, C, H, W) -> feature map (B, D, h, w). Images must not
            influence each other, so a batch norm has to be in evaluation mode.
        images (torch.Tensor): Shape (B, C, H, W), preprocessed.

    Returns:
        torch.Tensor: Shape (H, W), not negative. The centre token is the one in row h // 2 and
        column w // 2.
    """
    images = images.detach().clone().requires_grad_()
    with torch.enable_grad():
        maps = features(images)
        height, width = maps.shape[-2:]
        centre = maps[:, :, height // 2, width // 2].sum()
        (gradient,) = torch.autograd.grad(centre, images)
    return gradient.abs().sum(dim=1).mean(dim=0)
