"""Root-mean-square normalisation of a sum, and its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from mmvim_ops.precision import wide

__all__ = ['add_rms_norm', 'add_rms_norm_backward']


def add_rms_norm(
    x: Tensor, added: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel of ``add_rms_norm``: normed, total and the factor of each row."""
    total = (x + added).to(x.dtype)
    scales = torch.rsqrt(wide(total).square().mean(-1) + eps)
    normed = wide(total) * scales.unsqueeze(-1) * wide(weight)
    return normed.to(weight.dtype), total, scales


def add_rms_norm_backward(
    grad_normed: Tensor, grad_total: Tensor | None, total: Tensor, scales: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """The kernel of ``add_rms_norm_backward``: the gradients of x (or added) and weight.

    With y = x s w and s = (mean(x^2) + eps)^(-1/2): dx = s (w dy - x s^2 mean(w dy x)).
    """
    x, s, grad = wide(total), scales.unsqueeze(-1), wide(grad_normed)
    through = grad * wide(weight)
    grad_x = s * (through - x * s.square() * (through * x).mean(-1, keepdim=True))
    if grad_total is not None:
        grad_x = grad_x + grad_total
    grad_weight = (grad * x * s).flatten(0, -2).sum(0)
    return grad_x.to(total.dtype), grad_weight.to(weight.dtype)
