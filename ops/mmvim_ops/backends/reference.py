"""The specification, :mod:`mmvim_ops.reference`, behind ``backend='reference'``."""

from __future__ import annotations

from torch import Tensor

from mmvim_ops import reference
from mmvim_ops.backends.backend import Backend
from mmvim_ops.scan_inputs import SelectiveInputs

__all__ = ['REFERENCE']


class Reference(Backend):
    """The token loop under ordinary autograd, on any device."""

    name = 'reference'
    note = 'token loop, any device; the specification'

    def selective_scan(
        self, inputs: SelectiveInputs, delta_softplus: bool, reverse: bool, groups: int
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Backend.selective_scan`."""
        out, last_state = reference.selective_scan(
            *inputs, delta_softplus, reverse, groups, return_last_state=True
        )
        return out, last_state

    bidirectional_selective_scan = staticmethod(reference.bidirectional_selective_scan)
    conv1d_silu = staticmethod(reference.conv1d_silu)
    bi_conv1d_silu = staticmethod(reference.bi_conv1d_silu)
    add_rms_norm = staticmethod(reference.add_rms_norm)


REFERENCE = Reference()
