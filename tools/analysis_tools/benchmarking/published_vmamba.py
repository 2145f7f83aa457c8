"""VMamba's cross scan by the algorithm that its published code runs without compiled kernels.

Four copies of the map in four orders, decays and inputs of all states laid out, a loop over the
tokens, four results brought back into one order and summed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmvim.models import SS2D


class LoopedSS2D(SS2D):
    """:class:`mmvim.models.SS2D` with that cross scan; the rest is ours."""

    def _cross_scan(self, x: Tensor) -> Tensor:
        """(B, H, W, E) -> the sum of the four scans, of the same shape, in float32 at least."""
        height, width, channels = x.shape[1:]
        wide = torch.promote_types(x.dtype, torch.float32)
        rows = x.permute(0, 3, 1, 2)  # (B, E, H, W)
        forwards = torch.stack([rows.flatten(2), rows.transpose(2, 3).flatten(2)], dim=1)
        xs = torch.cat([forwards, forwards.flip(-1)], dim=1)  # (B, 4, E, L)
        dbl = torch.einsum('bkel,kce->bkcl', xs, self.x_proj_weight)
        dt, B, C = dbl.split((self.dt_rank, self.d_state, self.d_state), dim=2)
        dt = torch.einsum('bkrl,ker->bkel', dt, self.dt_projs_weight)
        dt = F.softplus(dt.to(wide) + self.dt_projs_bias.to(wide)[..., None])
        u, B, C = xs.to(wide), B.to(wide), C.to(wide)  # (B, 4, E, L), (B, 4, N, L) twice
        A = -torch.exp(self.A_logs.to(wide)).unflatten(0, (4, channels))  # (4, E, N)
        decays = torch.exp(torch.einsum('bkel,ken->bkeln', dt, A))
        inputs = torch.einsum('bkel,bknl,bkel->bkeln', dt, B, u)
        state = torch.zeros_like(decays[:, :, :, 0])
        outs = []
        for token in range(height * width):
            state = decays[:, :, :, token] * state + inputs[:, :, :, token]
            outs.append(torch.einsum('bken,bkn->bke', state, C[..., token]))
        y = torch.stack(outs, dim=-1) + u * self.Ds.to(wide).unflatten(0, (4, channels))[..., None]
        y = y[:, :2] + y[:, 2:].flip(-1)  # (B, 2, E, L)
        back = y[:, 1].unflatten(2, (width, height)).transpose(2, 3)
        return (y[:, 0].unflatten(2, (height, width)) + back).permute(0, 2, 3, 1)
