"""The interface of a backend: a name, the reason for which it cannot serve a call, the ops."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mmvim_ops.precision import full_precision, wide
from mmvim_ops.scan_inputs import BlockWeights, MixerWeights, ScanInputs, SelectiveInputs

__all__ = ['Backend', 'WholeBlock', 'project']

# From x (B, L, D), its weights, eps and scale to (B, L, D).
WholeBlock = Callable[[Tensor, BlockWeights, float, float], Tensor]


class Backend(ABC):
    """An implementation of the ops of :mod:`mmvim_ops.functional`, which has checked the inputs.

    Attributes:
        name (str): What ``backend=`` calls it.
    """

    name: str

    @property
    @abstractmethod
    def note(self) -> str:
        """A short description."""

    def unavailable(self) -> str | None:
        """The reason for which it cannot run on this machine, or None."""
        return None

    def problem(
        self, device: torch.device, dtype: torch.dtype, states: int = 0, rank: int = 0
    ) -> str | None:
        """The reason for which it cannot serve a call, or None.

        Args:
            device (torch.device): Where the inputs are.
            dtype (torch.dtype): Of the scanned input.
            states (int): N of a scan. Defaults to 0: no scan.
            rank (int): R of the projection of a scan's steps. Defaults to 0: none.
        """
        return self.unavailable()

    def serves(
        self, device: torch.device, dtype: torch.dtype, states: int = 0, rank: int = 0
    ) -> bool:
        """Whether ``auto`` takes it for a call; arguments as in :meth:`problem`."""
        return self.problem(device, dtype, states, rank) is None

    @abstractmethod
    def selective_scan(
        self, inputs: SelectiveInputs, delta_softplus: bool, reverse: bool, groups: int
    ) -> tuple[Tensor, Tensor]:
        """One scan: the output (B, L, E) and the last state (B, E, N)."""

    @abstractmethod
    def bidirectional_selective_scan(
        self,
        forward: ScanInputs,
        reverse: ScanInputs,
        z: Tensor | None,
        scale: float,
        out_dtype: torch.dtype,
    ) -> Tensor:
        """Both scans of a block, (B, L, E) in ``out_dtype``."""

    @abstractmethod
    def conv1d_silu(self, x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool) -> Tensor:
        """One convolution, (B, L, E)."""

    @abstractmethod
    def bi_conv1d_silu(
        self, x: Tensor, w_f: Tensor, b_f: Tensor | None, w_b: Tensor, b_b: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The causal and the anti-causal convolution, (B, L, E) each."""

    @abstractmethod
    def add_rms_norm(
        self, x: Tensor, added: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """The normalised sum and the sum, (B, L, C) each."""

    def vim_inner(
        self, x: Tensor, z: Tensor, forward: MixerWeights, reverse: MixerWeights, scale: float
    ) -> Tensor:
        """A block between in_proj and out_proj, (B, L, E): the ops one after the other."""
        with full_precision(x.device):
            x_f, x_b = self.bi_conv1d_silu(x, *forward[:2], *reverse[:2])
        dbl_f, dbl_b = project(x_f, forward.x_proj), project(x_b, reverse.x_proj)
        scans = forward.scan_inputs(x_f, dbl_f), reverse.scan_inputs(x_b, dbl_b)
        with full_precision(x.device):
            return self.bidirectional_selective_scan(*scans, z, scale, x.dtype)

    def whole_block(self, x: Tensor, weights: BlockWeights) -> WholeBlock | None:
        """The operator that :meth:`vim_block` of these is, or None: the ops one after the other."""
        return None

    def vim_block(self, x: Tensor, weights: BlockWeights, eps: float, scale: float) -> Tensor:
        """A whole block, (B, L, D)."""
        operator = self.whole_block(x, weights)
        if operator is not None:
            return operator(x, weights, eps, scale)
        with full_precision(x.device):
            normed = F.rms_norm(wide(x), x.shape[2:], wide(weights.norm), eps)
        normed = normed.to(weights.norm.dtype)
        inner, z = F.linear(normed, weights.in_proj, weights.in_bias).chunk(2, dim=-1)
        mixed = self.vim_inner(inner, z, weights.forward, weights.reverse, scale)
        out = F.linear(mixed, weights.out_proj, weights.out_bias)
        return x + (out if weights.gamma is None else out * weights.gamma).to(x.dtype)


def project(x: Tensor, weight: Tensor) -> Tensor:
    """x_proj of a direction, (B, L, R + 2N), in the dtype of x or in that of autocast."""
    return F.linear(x, weight.to(x.dtype))
