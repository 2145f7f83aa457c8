"""The scan of an installed mamba-ssm behind our signatures, for comparison.

mamba-ssm has the scan alone, so convolutions and normalisation are those in pure torch.
"""

from __future__ import annotations

import importlib

import torch
import torch.nn.functional as F
from torch import Tensor

from mmvim_ops.backends.backend import Backend
from mmvim_ops.backends.chunked import CHUNKED
from mmvim_ops.precision import wide
from mmvim_ops.scan_inputs import ScanInputs, SelectiveInputs

__all__ = ['MAMBA_SSM']


class MambaSsm(Backend):
    """``selective_scan_fn`` of mamba-ssm, on CUDA tensors."""

    name = 'mamba_ssm'
    note = 'scan kernels of mamba-ssm'

    def unavailable(self) -> str | None:
        """See :meth:`Backend.unavailable`."""
        problem = _import_problem()
        if problem is None and not torch.cuda.is_available():
            problem = 'needs CUDA tensors, and torch sees no CUDA device'
        return problem

    def problem(
        self, device: torch.device, dtype: torch.dtype, states: int = 0, rank: int = 0
    ) -> str | None:
        """See :meth:`Backend.problem`."""
        if device.type != 'cuda':
            return f'it needs CUDA tensors, and the inputs are on {device}'
        return 'it has no float64 kernels' if dtype == torch.float64 else _import_problem()

    def selective_scan(
        self, inputs: SelectiveInputs, delta_softplus: bool, reverse: bool, groups: int
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Backend.selective_scan`."""
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        def channels_first(tensor: Tensor) -> Tensor:
            """(B, L, ...) -> (B, ..., L) in the dtype of u, in scan order."""
            tensor = tensor.to(inputs.u.dtype)
            return (tensor.flip(1) if reverse else tensor).movedim(1, -1)

        u, delta, A, B, C, D, z, delta_bias = inputs
        out, last_state = selective_scan_fn(
            channels_first(u),
            channels_first(delta),
            A.float(),
            channels_first(B),
            channels_first(C),
            D=None if D is None else D.float(),
            z=None if z is None else channels_first(z),
            delta_bias=None if delta_bias is None else delta_bias.float(),
            delta_softplus=delta_softplus,
            return_last_state=True,
        )
        out = out.transpose(1, 2)
        return out.flip(1) if reverse else out, last_state

    def bidirectional_selective_scan(
        self,
        forward: ScanInputs,
        reverse: ScanInputs,
        z: Tensor | None,
        scale: float,
        out_dtype: torch.dtype,
    ) -> Tensor:
        """See :meth:`Backend.bidirectional_selective_scan`.

        Both directions are one forward scan of 2 E channels in two groups, the second group
        flipped.
        """
        both = [
            _split(forward),
            _split(ScanInputs(reverse.x.flip(1), reverse.dbl.flip(1), *reverse[2:])),
        ]
        u, delta, B, C = zip(*both)
        inputs = SelectiveInputs(
            torch.cat(u, dim=-1),
            torch.cat(delta, dim=-1),
            torch.cat((forward.A, reverse.A)),
            torch.stack(B, dim=2),
            torch.stack(C, dim=2),
            D=torch.cat((forward.D, reverse.D)),
            delta_bias=torch.cat((forward.dt_bias, reverse.dt_bias)),
        )
        y_f, y_b = self.selective_scan(inputs, True, False, 2)[0].chunk(2, dim=-1)
        y = y_f + y_b.flip(1)
        if z is not None:
            y = y * F.silu(wide(z))
        return (y * scale).to(out_dtype)

    conv1d_silu = staticmethod(CHUNKED.conv1d_silu)
    bi_conv1d_silu = staticmethod(CHUNKED.bi_conv1d_silu)
    add_rms_norm = staticmethod(CHUNKED.add_rms_norm)


def _split(given: ScanInputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """u, delta, B and C of one direction, in float32."""
    states, rank = given.A.shape[1], given.dt_weight.shape[1]
    dt, B, C = wide(given.dbl).split((rank, states, states), dim=-1)
    return wide(given.x), dt @ wide(given.dt_weight).t(), B, C


def _import_problem() -> str | None:
    """The reason for which mamba-ssm's scan cannot be imported, or None."""
    try:
        importlib.import_module('mamba_ssm.ops.selective_scan_interface')
    except Exception as error:  # a binary built for another torch fails with more than ImportError
        return f'mamba-ssm cannot be imported ({type(error).__name__}: {error})'
    return None


MAMBA_SSM = MambaSsm()
