"""The mixer of VMamba: a map scanned along its rows and along its columns, both ways."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mmvim.models.arguments import check_choice
from mmvim.models.base_module import check_whole
from mmvim.models.layers.norm import build_norm, normalise
from mmvim.models.layers.step_size import draw_step, rank_of
from mmvim_ops.functional import bidirectional_selective_scan
from mmvim_ops.precision import wide_dtype
from mmvim_ops.scan_inputs import ScanInputs

GATES = ('none', 'silu', 'identity')


class SS2D(nn.Module):
    """2D selective scan, of `VMamba <https://arxiv.org/abs/2401.10166>`_ (Sec. 4.2).

    A map is read as four sequences: row by row, column by column, and both from the end. Each has
    its own projections, A and D; the four results are summed, normalised and gated. Parameters
    carry the published names, with one leading axis or group of E rows per sequence, in this
    order: rows, columns, rows from the end, columns from the end.

    Published code copies the input for each of the four. Here the two sequences of the rows are
    one bidirectional scan of the tokens as they lie, those of the columns one of the turned map.

    Args:
        embed_dims (int): Number of channels D.
        d_state (int): Number of states N per inner channel. Defaults to 1.
        ssm_ratio (float): Inner channels E = int(``ssm_ratio`` · D). Defaults to 1.
        dt_rank (int | str): Rank R of the step-size projection, 'auto' for ceil(D / 16).
            Defaults to 'auto'.
        conv_kernel (int): Side of the depthwise convolution, odd; 1 for none. Defaults to 3.
        conv_bias (bool): Whether it has a bias. Defaults to False.
        gate (str): What multiplies the normalised scan: 'none', a second projection of the input
            ('identity') or SiLU of it ('silu'). Defaults to 'none'.
        norm_cfg (dict): Config of the norm behind the scan.
            Defaults to ``dict(type='LN', eps=1e-5)``.
        scan_backend (str): ``backend`` of :mod:`mmvim_ops`. Defaults to 'auto'.

    Raises:
        ValueError: If there is no such gate, or ``ssm_ratio`` leaves no channel.
    """

    def __init__(
        self,
        embed_dims: int,
        d_state: int = 1,
        ssm_ratio: float = 1.0,
        dt_rank: int | str = 'auto',
        conv_kernel: int = 3,
        conv_bias: bool = False,
        gate: str = 'none',
        norm_cfg: dict[str, Any] = dict(type='LN', eps=1e-5),
        scan_backend: str = 'auto',
    ) -> None:
        super().__init__()
        check_choice('gate', gate, GATES)
        self.d_state = d_state
        self.inner_dims = E = int(ssm_ratio * embed_dims)
        if not E:
            raise ValueError(f'ssm_ratio={ssm_ratio!r} of {embed_dims} channels leaves none.')
        self.dt_rank = rank_of(dt_rank, embed_dims)
        self.gate = gate
        self.scan_backend = scan_backend

        # The published order, which checkpoints of optimisers rely on.
        self.x_proj_weight = nn.Parameter(torch.empty(4, self.dt_rank + 2 * d_state, E))
        self.A_logs = nn.Parameter(torch.empty(4 * E, d_state))
        self.Ds = nn.Parameter(torch.empty(4 * E))
        self.dt_projs_weight = nn.Parameter(torch.empty(4, E, self.dt_rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(4, E))
        self.in_proj = nn.Linear(embed_dims, E if gate == 'none' else 2 * E, bias=False)
        if conv_kernel > 1:
            side, padding = conv_kernel, conv_kernel // 2
            self.conv2d = nn.Conv2d(E, E, side, padding=padding, groups=E, bias=conv_bias)
        self.out_norm = build_norm(norm_cfg, E)
        self.out_proj = nn.Linear(E, embed_dims, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw what the published initialisation draws.

        x_proj uniform within ±E^(-1/2), the steps as :func:`draw_step` says, A = -(1 … N) per
        channel, D = 1; the backbone draws input and output projection.
        """
        check_whole(self)
        bound = self.inner_dims**-0.5
        self.x_proj_weight.uniform_(-bound, bound)
        draw_step(self.dt_projs_weight, self.dt_projs_bias)
        states = torch.arange(1, self.d_state + 1, dtype=torch.float32)
        self.A_logs.copy_(states.log().expand_as(self.A_logs))
        self.Ds.fill_(1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mix the positions of each map.

        Args:
            x (torch.Tensor): Shape (B, H, W, D).

        Returns:
            torch.Tensor: Shape (B, H, W, D).
        """
        x, z = self.in_proj(x), None
        dtype = x.dtype
        if self.gate != 'none':
            x, z = x.chunk(2, dim=-1)  # (B, H, W, E) each, views
        if hasattr(self, 'conv2d'):
            x = self.conv2d(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y = normalise(self.out_norm, self._cross_scan(F.silu(x)), dtype)
        if z is not None:
            y = y * (F.silu(z) if self.gate == 'silu' else z)
        return self.out_proj(y.to(dtype))

    def _cross_scan(self, x: torch.Tensor) -> torch.Tensor:
        """All four sequences of a map (B, H, W, E), summed, in at least float32."""
        # The projections see a position alone: one product serves all sequences.
        dbl = F.linear(x, self.x_proj_weight.flatten(0, 1)).unflatten(-1, (4, -1))
        rows = self._scan_both_ways(x, dbl, 0)
        columns = self._scan_both_ways(x.transpose(1, 2), dbl.transpose(1, 2), 1)
        return rows + columns.transpose(1, 2)

    def _scan_both_ways(self, x: torch.Tensor, dbl: torch.Tensor, first: int) -> torch.Tensor:
        """Sequence ``first`` and, from the end, sequence ``first + 2``; both (B, H, W, E)."""
        wide = torch.promote_types(self.A_logs.dtype, torch.float32)
        A = -torch.exp(self.A_logs.to(wide)).unflatten(0, (4, -1))  # (4, E, N)
        D = self.Ds.unflatten(0, (4, -1))
        tokens = x.flatten(1, 2)
        forward, reverse = (
            ScanInputs(
                tokens,
                dbl[..., k, :].flatten(1, 2),
                self.dt_projs_weight[k],
                self.dt_projs_bias[k],
                A[k],
                D[k],
            )
            for k in (first, first + 2)
        )
        options: dict[str, Any] = dict(scale=1.0, out_dtype=wide_dtype(x.dtype))
        y = bidirectional_selective_scan(forward, reverse, **options, backend=self.scan_backend)
        return y.unflatten(1, x.shape[1:3])
