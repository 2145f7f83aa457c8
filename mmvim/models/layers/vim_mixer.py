"""The token mixer of Vision Mamba: projections, depthwise convolution, bidirectional scan."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from mmvim.models.arguments import check_choice
from mmvim.models.base_module import check_whole
from mmvim.models.layers.direction import DIRECTIONS
from mmvim.models.layers.plain import is_as_built, read
from mmvim.models.layers.step_size import draw_step, rank_of
from mmvim_ops.functional import (
    bidirectional_selective_scan,
    conv1d_silu,
    selective_scan,
    vim_inner,
)
from mmvim_ops.precision import full_precision
from mmvim_ops.scan_inputs import BlockWeights, MixerWeights, ScanInputs


class _Scan(NamedTuple):
    """What one direction reads: layers, A (E, N), D (E,), width of the convolution, backend."""

    conv1d: nn.Conv1d
    x_proj: nn.Linear
    dt_proj: nn.Linear
    A: torch.Tensor
    D: torch.Tensor
    d_conv: int
    backend: str

    def weights(self) -> MixerWeights | None:
        """The parameters of all layers; None if one has to be called."""
        conv = self.convolution()
        projection, step = read(self.x_proj, nn.Linear), read(self.dt_proj, nn.Linear)
        if conv is None or projection is None or step is None:
            return None
        if projection[1] is not None or step[1] is None:
            return None
        return MixerWeights(*conv, projection[0], step[0], step[1], self.A, self.D)

    def convolution(self) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """Weight (E, W) and bias of the convolution; None if it has to be called.

        It may be read if nothing hangs on it, and it is as it was built.
        """
        conv, found = self.conv1d, read(self.conv1d, nn.Conv1d)
        if found is None:
            return None
        weight, bias = found
        built = (conv.stride, conv.padding, conv.dilation) == ((1,), (0,), (1,))
        if not built or weight.shape[1] != 1 or weight.shape[0] != conv.groups:
            return None
        return weight.squeeze(1), bias

    def dt_proj_is_plain(self) -> bool:
        """Whether the projection may be read: nothing hangs on it, and it has its bias."""
        found = read(self.dt_proj, nn.Linear)
        return found is not None and found[1] is not None

    def convolve(self, x: torch.Tensor, reverse: bool) -> torch.Tensor:
        """SiLU of the causal convolution over (B, L, E), anti-causal with ``reverse``.

        Raises:
            ValueError: If a layer in the convolution's place pads by itself.
        """
        found = self.convolution()
        if found is not None:
            return conv1d_silu(x, *found, reverse=reverse, backend=self.backend)
        rows = x.flip(1) if reverse else x
        reach = self.d_conv - 1
        if isinstance(self.conv1d, nn.Conv1d):
            reach = self.conv1d.dilation[0] * (self.conv1d.kernel_size[0] - 1)
        out = self.conv1d(F.pad(rows.transpose(1, 2), (reach, 0)))  # of (B, E, reach + L)
        if out.shape[2] != x.shape[1]:
            raise ValueError(
                f'conv1d is given {reach} zeros before its {x.shape[1]} tokens and must give as '
                f'many tokens, got {out.shape[2]}: it may neither pad nor stride.'
            )
        out = F.silu(out).transpose(1, 2)
        return out.flip(1) if reverse else out

    def step(self, dbl: torch.Tensor) -> torch.Tensor:
        """The step size (B, L, E) before softplus, of dbl (B, L, R + 2N)."""
        dt = dbl[..., : dbl.shape[-1] - 2 * self.A.shape[1]]
        wide = torch.promote_types(dt.dtype, torch.float32)
        dtypes = (p.dtype for p in self.dt_proj.parameters() if p.is_floating_point())
        # It stays in float32 if it can: its error is amplified by exp(dt A).
        with full_precision(dt.device):
            if self.dt_proj_is_plain():
                weight, bias = (p.to(wide) for p in (self.dt_proj.weight, self.dt_proj.bias))
                return F.linear(dt.to(wide), weight, bias)
            return self.dt_proj(dt.to(next(dtypes, wide)))

    def inputs(self, x: torch.Tensor, dbl: torch.Tensor) -> ScanInputs:
        """Inputs of the scan if ``dt_proj`` is plain."""
        return ScanInputs(x, dbl, self.dt_proj.weight, self.dt_proj.bias, self.A, self.D)

    def run(
        self, x: torch.Tensor, step: torch.Tensor, dbl: torch.Tensor, z: torch.Tensor, reverse: bool
    ) -> torch.Tensor:
        """The gated scan, (B, L, E)."""
        N = self.A.shape[1]
        options: dict[str, Any] = dict(D=self.D, z=z, reverse=reverse, backend=self.backend)
        B, C = dbl[..., -2 * N : -N], dbl[..., -N:]
        return selective_scan(x, step, self.A, B, C, delta_softplus=True, **options)


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
        self.d_conv = d_conv
        self.inner_dims = expand * embed_dims
        self.dt_rank = rank_of(dt_rank, embed_dims)
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
        self._gamma_init = float(layer_scale_init or 0.0)
        self.gamma = None if layer_scale_init is None else nn.Parameter(torch.empty(embed_dims))
        self.reset_parameters()

    def _conv(self, width: int, bias: bool) -> nn.Conv1d:
        """A depthwise convolution of (B, E, L), which the op runs as (B, L, E)."""
        return nn.Conv1d(self.inner_dims, self.inner_dims, width, groups=self.inner_dims, bias=bias)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw what the published initialisation draws; the rest keeps torch's defaults.

        A = -(1 … N) per channel (S4D-real, Mamba Sec. 3.6), D = 1, dt weights uniform within
        ±R^(-1/2), dt bias by inverse softplus, other linear biases 0.
        """
        check_whole(self)
        states = torch.arange(1, self.d_state + 1, dtype=torch.float32)
        for name, param in self.named_parameters(recurse=False):
            if name.startswith('A_'):
                param.copy_(states.log().expand_as(param))
            else:  # D and the layer scale
                param.fill_(self._gamma_init if name == 'gamma' else 1.0)
        for linear in (self.in_proj, self.out_proj):
            if linear.bias is not None:
                linear.bias.zero_()
        for dt_proj in [self.dt_proj, self.dt_proj_b] if 'D' in self._own else [self.dt_proj]:
            draw_step(dt_proj.weight, dt_proj.bias)

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
        mixed = self._scan_both(x, z) if self._own else self._scan_one(x, z, reverse)
        out = self.out_proj(mixed)
        return out if self.gamma is None else out * self.gamma

    def block_weights(self, norm: nn.Module) -> BlockWeights | None:
        """The parameters of a block with this mixer behind ``norm``; None if a part must be called.

        Args:
            norm (nn.Module): The block's normalisation.
        """
        if 'conv1d' not in self._own or not is_as_built(self, VimMixer, _FORWARD):
            return None
        normed = read(norm, nn.RMSNorm)
        into, out = read(self.in_proj, nn.Linear), read(self.out_proj, nn.Linear)
        if normed is None or into is None or out is None:
            return None
        forward, reverse = self._scan('').weights(), self._scan('_b').weights()
        if forward is None or reverse is None:
            return None
        return BlockWeights(normed[0], *into, forward, reverse, *out, self.gamma)

    def _scan(self, suffix: str) -> _Scan:
        """What a direction reads, its own under names with this suffix, or shared."""
        own = self._own if suffix else ()
        names = ('conv1d', 'x_proj', 'dt_proj', 'D')
        conv1d, x_proj, dt_proj, D = (
            getattr(self, name + suffix if name in own else name) for name in names
        )
        A_log = self.A_b_log if 'A' in own else self.A_log
        A = -torch.exp(A_log.to(torch.promote_types(A_log.dtype, torch.float32)))
        return _Scan(conv1d, x_proj, dt_proj, A, D, self.d_conv, self.scan_backend)

    def _scan_one(self, x: torch.Tensor, z: torch.Tensor, reverse: bool) -> torch.Tensor:
        """One direction: x, z (B, L, E) -> (B, L, E)."""
        scan = self._scan('')
        x = scan.convolve(x, reverse)
        dbl = scan.x_proj(x)
        return scan.run(x, scan.step(dbl), dbl, z, reverse)

    def _scan_both(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Both directions: x, z (B, L, E) -> (B, L, E)."""
        forward, reverse = self._scan(''), self._scan('_b')
        options: dict[str, Any] = dict(scale=self.scale, backend=self.scan_backend)
        own = 'conv1d' in self._own
        weights_f, weights_b = forward.weights(), reverse.weights()
        if own and weights_f is not None and weights_b is not None:
            # As one op, which saves less for training.
            return vim_inner(x, z, weights_f, weights_b, **options)
        x_f = forward.convolve(x, False)
        x_b = reverse.convolve(x, True) if own else x_f
        dbl_f = forward.x_proj(x_f)  # (B, L, R + 2N)
        dbl_b = reverse.x_proj(x_b) if own else dbl_f
        if forward.dt_proj_is_plain() and reverse.dt_proj_is_plain():
            inputs = forward.inputs(x_f, dbl_f), reverse.inputs(x_b, dbl_b)
            return bidirectional_selective_scan(*inputs, z, **options)
        step_f = forward.step(dbl_f)
        step_b = reverse.step(dbl_b) if own else step_f
        y_f = forward.run(x_f, step_f, dbl_f, z, False)
        return self.scale * (y_f + reverse.run(x_b, step_b, dbl_b, z, True))


_FORWARD = VimMixer.forward
