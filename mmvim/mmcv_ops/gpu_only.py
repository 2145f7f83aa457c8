"""Operators that mmcv compiles for GPUs alone, in torch; on a CPU it needs none of them.

RetinaNet, FCOS and Deformable DETR reach the focal loss, Deformable DETR and Mask2Former the
attention. Buffers are filled in place, as the callers in ``mmcv.ops`` expect.
"""

from __future__ import annotations

import torch
from torch import Tensor

# The least positive float32, below which the compiled operator takes no logarithm.
_TINY = torch.finfo(torch.float32).tiny


def _focal_terms(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities p, 1 - p, and whether a class is the target's, each (N, C)."""
    p = input.to(torch.promote_types(input.dtype, torch.float32)).sigmoid()
    return p, 1 - p, target[:, None] == torch.arange(input.shape[1], device=input.device)


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss of every class (arXiv 1708.02002, equation 5), without reduction.

    Args:
        input (Tensor): (N, C) logits.
        target (Tensor): (N,) int64; C is background.
        weight (Tensor): (C,) factor by target, or empty.
        output (Tensor): (N, C), filled.
        gamma (float): Exponent that plays down what is easy.
        alpha (float): Weight of the target's class; the others weigh 1 - alpha.
    """
    p, q, positive = _focal_terms(input, target)
    loss = torch.where(
        positive,
        -alpha * q**gamma * p.clamp(min=_TINY).log(),
        (alpha - 1) * p**gamma * q.clamp(min=_TINY).log(),
    )
    output.copy_(loss * weight[target, None] if weight.numel() else loss)


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Gradient of :func:`sigmoid_focal_loss_forward` by its logits, into ``grad_input`` (N, C)."""
    p, q, positive = _focal_terms(input, target)
    grad = torch.where(
        positive,
        -alpha * q**gamma * (q - gamma * p * p.clamp(min=_TINY).log()),
        (alpha - 1) * p**gamma * (gamma * q * q.clamp(min=_TINY).log() - p),
    )
    grad_input.copy_(grad * weight[target, None] if weight.numel() else grad)


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    locations: Tensor,
    weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Multi-scale deformable attention (arXiv 2010.04159), as mmcv computes it on a CPU.

    Args:
        value (Tensor): (B, S, heads, D), the maps of all levels one after the other.
        spatial_shapes (Tensor): (levels, 2) int64, height and width.
        level_start_index (Tensor): (levels,), not needed here.
        locations (Tensor): (B, L, heads, levels, points, 2), x and y in 0 to 1.
        weights (Tensor): (B, L, heads, levels, points).
        im2col_step (int): Images at a time, not needed here.

    Returns:
        Tensor: (B, L, heads * D), in the dtype of ``value``.
    """
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    output = multi_scale_deformable_attn_pytorch(value, spatial_shapes, locations, weights)
    return output.to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    locations: Tensor,
    weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_locations: Tensor,
    grad_weights: Tensor,
    im2col_step: int,
) -> None:
    """Gradients of :func:`ms_deform_attn_forward`, which is computed again, into the buffers."""
    inputs = [tensor.detach().requires_grad_() for tensor in (value, locations, weights)]
    with torch.enable_grad():
        output = ms_deform_attn_forward(
            inputs[0], spatial_shapes, level_start_index, inputs[1], inputs[2], im2col_step
        )
    grads = torch.autograd.grad(output, inputs, grad_output)
    for buffer, grad in zip((grad_value, grad_locations, grad_weights), grads):
        buffer.copy_(grad)
