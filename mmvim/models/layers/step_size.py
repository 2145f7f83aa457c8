"""The step size dt of a scan at initialisation, drawn for every family alike."""

from __future__ import annotations

import math

import torch

# Range of the step size (Mamba, Sec. 3.6; published defaults).
_DT_MIN, _DT_MAX, _DT_FLOOR = 1e-3, 1e-1, 1e-4


def rank_of(dt_rank: int | str, embed_dims: int) -> int:
    """Rank R of the projection of the step: ``dt_rank``, or ceil(D / 16) for 'auto'."""
    return math.ceil(embed_dims / 16) if dt_rank == 'auto' else int(dt_rank)


@torch.no_grad()
def draw_step(weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Draw the projection of the step as published.

    Args:
        weight (torch.Tensor): Shape (..., E, R), becomes uniform within ±R^(-1/2).
        bias (torch.Tensor): Shape (..., E); its softplus becomes log-uniform in [0.001, 0.1].
    """
    bound = weight.shape[-1] ** -0.5
    weight.uniform_(-bound, bound)
    log_dt = torch.empty(bias.shape).uniform_(math.log(_DT_MIN), math.log(_DT_MAX))
    dt = log_dt.exp().clamp(min=_DT_FLOOR)
    bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus
