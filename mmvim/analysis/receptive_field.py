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


def log_scaled(field: torch.Tensor, decades: float) -> torch.Tensor:
    """The logarithm (base 10) of a field relative to its maximum.

    Args:
        field (torch.Tensor): Not negative, any shape.
        decades (float): How far down; what is smaller but not zero is raised to that.

    Returns:
        torch.Tensor: Values in [-decades, 0]; -inf where the field is exactly zero.
    """
    peak = field.max()
    if peak == 0:
        return torch.full_like(field, -torch.inf)
    scaled = torch.log10(field / peak).clamp(min=-decades)
    return torch.where(field > 0, scaled, -torch.inf)


def side_of_share(field: torch.Tensor, share: float, grid: tuple[int, int]) -> int:
    """Side of the smallest square around the centre token that holds a share of the field.

    Args:
        field (torch.Tensor): Shape (H, W), not negative, not all zero.
        share (float): In (0, 1].
        grid (tuple[int, int]): Rows h and columns w of the feature map, which tell the centre.

    Returns:
        int: In pixels; where the square reaches over an edge, what lies outside counts as empty.
    """
    distances = [
        (torch.arange(pixels) + 0.5 - (cells // 2 + 0.5) / cells * pixels).abs()
        for pixels, cells in zip(field.shape, grid)
    ]
    # The side of the square around the centre on whose rim a pixel's outer edge lies.
    sides = (2 * torch.maximum(distances[0][:, None], distances[1][None, :]) + 1).ceil().long()
    sums = torch.bincount(sides.flatten(), weights=field.double().flatten().cpu())
    held = sums.cumsum(0) / sums.sum()
    # Rounding must not leave the last one below a share of one.
    return int((held < share - 1e-12).sum())
