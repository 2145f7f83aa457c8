"""The token mixer of Vision Mamba: projections, depthwise convolution, bidirectional scan."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from mmvim.models.arguments import check_choice
from mmvim.models.layers.direction import DIRECTIONS
from mmvim_ops.functional import (
    bi_conv1d_silu,
    bidirectional_selective_scan,
    conv1d_silu,
    selective_scan,
    vim_inner,
)
from mmvim_ops.precision import full_precision
from mmvim_ops.scan_inputs import MixerWeights, ScanInputs

# Range of the step size dt at initialisation (Mamba, Sec. 3.6; published defaults).
_DT_MIN, _DT_MAX, _DT_FLOOR = 1e-3, 1e-1, 1e-4


class VimMixer(nn.Module):
    """Selective state space model over a token sequence, in one direction or in both.

    Implements lines 5 to 20 of Alg. 1 of `Vision Mamba <https://arxiv.org/abs/2401.09417>`_.
    Parameters carry the published names, those of the backward direction with ``_b``.

    ``dt_proj.bias`` of *both* directions is drawn so that ``softplus(bias)`` is log-uniform in
    [0.001, 0.1]. (The published code leaves that of the backward direction at 0, a step of 0.69,
    and its dense-prediction twin leaves both there.)

    Args:
        embed_dims (int): Number of channels D.
        d_state (int): Number of states N per inner channel. Defaults to 16.
        d_conv (int): Width W of the causal convolution. Defaults to 4.
        expand (int): Inner channels E = ``expand`` · D. Defaults to 2.
        dt_rank (int | str): Rank R of the step-size projection, 'auto' for ceil(D / 16).
            Defaults to 'auto'.
        conv_bias (bool): Whether the convolution has a bias. Defaults to True.
        proj_bias (bool): Whether input and output projection have a bias. Defaults to False.
        direction (str): A row of :data:`DIRECTIONS`, which says what a second, reverse scan has
            to itself, or that there is none. Defaults to 'ssm_conv'.
        average_directions (bool): Whether 'ssm_conv' halves the sum of both directions; 'ssm'
            always sums, as published. Defaults to True.
        layer_scale_init (float | None): Initial value of a learnt scale per channel on the
            output; None for no such scale. Defaults to None.
        scan_backend (str): ``backend`` of :mod:`mmvim_ops`, for the convolutions too.
            Defaults to 'auto'.
    """

    def __init__(
        self,
        embed_dims: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | str = 'auto',
        conv_bias: bool = True,
        proj_bias: bool = False,
        direction: str = 'ssm_conv',
        average_directions: bool = True,
        layer_scale_init: float | None = None,
        scan_backend: str = 'auto',
    ) -> None:
        super().__init__()
        check_choice('direction', direction, DIRECTIONS)
        self.embed_dims = embed_dims
        self.d_state = d_state
        self.inner_dims = expand * embed_dims
        self.dt_rank = math.ceil(embed_dims / 16) if dt_rank == 'auto' else int(dt_rank)
        self.direction = direction
        self._own = DIRECTIONS[direction].own
        self.scale = 0.5 if DIRECTIONS[direction].averages and average_directions else 1.0
        self.scan_backend = scan_backend

        self.in_proj = nn.Linear(embed_dims, 2 * self.inner_dims, bias=proj_bias)
        self.conv1d = self._conv(d_conv, conv_bias)
        self.x_proj = nn.Linear(self.inner_dims, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.inner_dims)
        self.A_log = nn.Parameter(torch.empty(self.inner_dims, d_state))
        self.D = nn.Parameter(torch.empty(self.inner_dims))
        if self._own:
            self.A_b_log = nn.Parameter(torch.empty(self.inner_dims, d_state))
        if 'conv1d' in self._own:
            self.conv1d_b = self._conv(d_conv, conv_bias)
            self.x_proj_b = nn.Linear(self.inner_dims, self.dt_rank + 2 * d_state, bias=False)
            self.dt_proj_b = nn.Linear(self.dt_rank, self.inner_dims)
            self.D_b = nn.Parameter(torch.empty(self.inner_dims))
        self.out_proj = nn.Linear(self.inner_dims, embed_dims, bias=proj_bias)
        self.gamma = (
            None
            if layer_scale_init is None
            else nn.Parameter(torch.full((embed_dims,), float(layer_scale_init)))
        )
        self.reset_parameters()

    def _conv(self, width: int, bias: bool) -> nn.Conv1d:
        """A depthwise convolution that holds the weights; the op itself runs channel-last."""
        return nn.Conv1d(self.inner_dims, self.inner_dims, width, groups=self.inner_dims, bias=bias)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw what the published initialisation draws; the rest keeps torch's defaults.

        A = -(1 … N) per channel (S4D-real, Mamba Sec. 3.6), D = 1, dt weights uniform within
        ±R^(-1/2), dt bias by inverse softplus, other linear biases 0.
        """
        both = 'conv1d' in self._own
        states = torch.arange(1, self.d_state + 1, dtype=torch.float32)
        for A_log in [self.A_log, self.A_b_log] if self._own else [self.A_log]:
            A_log.copy_(states.log().expand_as(A_log))
        for D in [self.D, self.D_b] if both else [self.D]:
            D.fill_(1.0)
        for linear in (self.in_proj, self.out_proj):
            if linear.bias is not None:
                linear.bias.zero_()
        for dt_proj in [self.dt_proj, self.dt_proj_b] if both else [self.dt_proj]:
            bound = self.dt_rank**-0.5
            dt_proj.weight.uniform_(-bound, bound)
            log_dt = torch.empty(self.inner_dims).uniform_(math.log(_DT_MIN), math.log(_DT_MAX))
            dt = log_dt.exp().clamp(min=_DT_FLOOR)
            dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus

    def forward(self, tokens: torch.Tensor, reverse: bool = False) -> torch.Tensor:
        """Mix the tokens of each sequence.

        Args:
            tokens (torch.Tensor): Shape (B, L, D).
            reverse (bool): Whether the one scan runs from the last token to the first,
                convolution included, as if the sequence were flipped before and after; two scans
                take no notice. Defaults to False.

        Returns:
            torch.Tensor: Shape (B, L, D).
        """
        x, z = self.in_proj(tokens).chunk(2, dim=-1)  # (B, L, E) each, views
        if not self._own:
            mixed = self._scan_one(x, z, reverse)
        elif 'conv1d' in self._own and self._projections_are_plain():
            mixed = self._inner(x, z)
        else:
            mixed = self._scan_both(x, z)
        out = self.out_proj(mixed)
        return out if self.gamma is None else out * self.gamma

    def _scan_one(self, x: torch.Tensor, z: torch.Tensor, reverse: bool) -> torch.Tensor:
        """One direction: x, z (B, L, E) -> (B, L, E)."""
        weight, backend = self.conv1d.weight.squeeze(1), self.scan_backend
        x = conv1d_silu(x, weight, self.conv1d.bias, reverse=reverse, backend=backend)
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        # The step size stays in float32 under autocast: its error is amplified by exp(dt A).
        wide = torch.promote_types(dt.dtype, torch.float32)
        with full_precision(dt.device):
            delta = F.linear(dt.to(wide), self.dt_proj.weight.to(wide))
        return selective_scan(
            x,
            delta,
            self._decay(self.A_log),
            B,
            C,
            D=self.D,
            z=z,
            delta_bias=self.dt_proj.bias,
            delta_softplus=True,
            reverse=reverse,
            backend=self.scan_backend,
        )

    def _projections_are_plain(self) -> bool:
        """Whether x_proj is its weight and nothing else: no adapter, quantiser or hook."""
        return all(
            type(module) is nn.Linear
            and not (module._forward_hooks or module._forward_pre_hooks)
            and not (module._backward_hooks or module._backward_pre_hooks)
            for module in (self.x_proj, self.x_proj_b)
        )

    def _inner(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """'ssm_conv' as one op, which saves less for training: x, z (B, L, E) -> (B, L, E)."""
        return vim_inner(x, z, *self._weights(), scale=self.scale, backend=self.scan_backend)

    def _weights(self) -> tuple[MixerWeights, MixerWeights]:
        """The parameters of either direction of 'ssm_conv', as the ops take them."""
        return (
            MixerWeights(
                self.conv1d.weight.squeeze(1),
                self.conv1d.bias,
                self.x_proj.weight,
                self.dt_proj.weight,
                self.dt_proj.bias,
                self._decay(self.A_log),
                self.D,
            ),
            MixerWeights(
                self.conv1d_b.weight.squeeze(1),
                self.conv1d_b.bias,
                self.x_proj_b.weight,
                self.dt_proj_b.weight,
                self.dt_proj_b.bias,
                self._decay(self.A_b_log),
                self.D_b,
            ),
        )

    def _scan_both(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Both directions, op by op: x, z (B, L, E) -> (B, L, E)."""
        own = 'conv1d' in self._own
        weight, bias = self.conv1d.weight.squeeze(1), self.conv1d.bias
        if own:
            x_f, x_b = bi_conv1d_silu(
                x,
                weight,
                bias,
                self.conv1d_b.weight.squeeze(1),
                self.conv1d_b.bias,
                backend=self.scan_backend,
            )
            dbl_f, dbl_b = self.x_proj(x_f), self.x_proj_b(x_b)  # (B, L, R + 2N)
        else:
            x_f = x_b = conv1d_silu(x, weight, bias, backend=self.scan_backend)
            dbl_f = dbl_b = self.x_proj(x_f)
        dt_proj, dt_proj_b = self.dt_proj, self.dt_proj_b if own else self.dt_proj
        return bidirectional_selective_scan(
            ScanInputs(x_f, dbl_f, dt_proj.weight, dt_proj.bias, self._decay(self.A_log), self.D),
            ScanInputs(
                x_b,
                dbl_b,
                dt_proj_b.weight,
                dt_proj_b.bias,
                self._decay(self.A_b_log),
                self.D_b if own else self.D,
            ),
            z,
            scale=self.scale,
            backend=self.scan_backend,
        )

    @staticmethod
    def _decay(A_log: torch.Tensor) -> torch.Tensor:
        """A = -exp(A_log), (E, N), in at least float32."""
        return -torch.exp(A_log.to(torch.promote_types(A_log.dtype, torch.float32)))
