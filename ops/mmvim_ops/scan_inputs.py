"""Inputs of one direction of a scan, and of a Vim block: one value each, with its shape rules.

Letters: B batch, L tokens, D channels, E inner channels, N states, R dt rank, W width of the
convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from mmvim_ops.checks import check_shape, check_sizes

__all__ = [
    'BlockWeights',
    'MixerWeights',
    'ScanInputs',
    'SelectiveInputs',
    'directions',
    'interleaved',
    'named',
    'without_absent',
]


class ScanInputs(NamedTuple):
    """Inputs of one direction of a bidirectional scan.

    Attributes:
        x (Tensor): (B, L, E), after the convolution.
        dbl (Tensor): (B, L, R + 2N), the output of x_proj: dt, then B, then C.
        dt_weight (Tensor): (E, R), weight of dt_proj.
        dt_bias (Tensor): (E,), bias of dt_proj.
        A (Tensor): (E, N), the decay rates themselves, negative in a stable model (not A_log).
        D (Tensor): (E,), the skip connection.
    """

    x: Tensor
    dbl: Tensor
    dt_weight: Tensor
    dt_bias: Tensor
    A: Tensor
    D: Tensor

    def check(self, name: str, like: ScanInputs | None = None) -> None:
        """Raise unless all shapes fit.

        Args:
            name (str): What messages call this direction.
            like (ScanInputs | None): The direction whose sizes this one must have. Defaults to
                None: its own.

        Raises:
            ValueError: A shape does not fit; the message names the tensor and both shapes.
        """
        lead = self if like is None else like
        check_sizes(f'{name}.x', self.x, '(B, L, E)')
        batch, length, channels = lead.x.shape
        check_shape(f'{name}.x', self.x, (batch, length, channels), '(B, L, E)')
        columns = _check_parameters(self, lead, name, channels)
        check_shape(f'{name}.dbl', self.dbl, (batch, length, columns), '(B, L, R + 2 N)')


class MixerWeights(NamedTuple):
    """The parameters of one direction of a Vim block, between in_proj and out_proj.

    Attributes:
        conv_weight (Tensor): (E, W), weight of the depthwise convolution.
        conv_bias (Tensor | None): (E,), its bias.
        x_proj (Tensor): (R + 2N, E), weight of x_proj, whose output is dt, then B, then C.
        dt_weight (Tensor): (E, R), weight of dt_proj.
        dt_bias (Tensor): (E,), bias of dt_proj.
        A (Tensor): (E, N), the decay rates themselves, negative in a stable model (not A_log).
        D (Tensor): (E,), the skip connection.
    """

    conv_weight: Tensor
    conv_bias: Tensor | None
    x_proj: Tensor
    dt_weight: Tensor
    dt_bias: Tensor
    A: Tensor
    D: Tensor

    def check(self, name: str, channels: int, like: MixerWeights | None = None) -> None:
        """As :meth:`ScanInputs.check`, for E channels."""
        lead = self if like is None else like
        check_sizes(f'{name}.conv_weight', self.conv_weight, '(E, W)')
        shape = (channels, lead.conv_weight.shape[1])
        check_shape(f'{name}.conv_weight', self.conv_weight, shape, '(E, W)')
        if self.conv_bias is not None:
            check_shape(f'{name}.conv_bias', self.conv_bias, (channels,), '(E,)')
        columns = _check_parameters(self, lead, name, channels)
        check_shape(f'{name}.x_proj', self.x_proj, (columns, channels), '(R + 2 N, E)')

    def scan_inputs(self, x: Tensor, dbl: Tensor) -> ScanInputs:
        """Inputs of the scan, given the outputs of the convolution and of x_proj."""
        return ScanInputs(x, dbl, *self[3:])


class BlockWeights(NamedTuple):
    """The parameters of a Vim block.

    Attributes:
        norm (Tensor): (D,), weight of the root-mean-square normalisation.
        in_proj (Tensor): (2E, D), weight of in_proj, whose output is x, then z.
        in_bias (Tensor | None): (2E,), its bias.
        forward (MixerWeights): Those of the direction from the first token to the last.
        reverse (MixerWeights): Those of the direction from the last token to the first.
        out_proj (Tensor): (D, E), weight of out_proj.
        out_bias (Tensor | None): (D,), its bias.
        gamma (Tensor | None): (D,), a scale of the block's output.
    """

    norm: Tensor
    in_proj: Tensor
    in_bias: Tensor | None
    forward: MixerWeights
    reverse: MixerWeights
    out_proj: Tensor
    out_bias: Tensor | None = None
    gamma: Tensor | None = None

    def check(self, dims: int) -> None:
        """Raise unless all shapes fit, for D = ``dims``; as :meth:`ScanInputs.check`."""
        check_sizes('out_proj', self.out_proj, '(D, E)')
        channels = self.out_proj.shape[1]
        check_shape('norm', self.norm, (dims,), '(D,)')
        check_shape('in_proj', self.in_proj, (2 * channels, dims), '(2 E, D)')
        check_shape('out_proj', self.out_proj, (dims, channels), '(D, E)')
        if self.in_bias is not None:
            check_shape('in_bias', self.in_bias, (2 * channels,), '(2 E,)')
        for name, tensor in (('out_bias', self.out_bias), ('gamma', self.gamma)):
            if tensor is not None:
                check_shape(name, tensor, (dims,), '(D,)')
        self.forward.check('forward', channels)
        self.reverse.check('reverse', channels, like=self.forward)

    def named(self) -> dict[str, Any]:
        """All values but absent ones that may be, by what messages call them."""
        sides = named(self.forward, self.reverse)
        return without_absent(
            dict(zip(self._fields[:3], self[:3])) | sides | dict(zip(self._fields[5:], self[5:]))
        )

    def flat(self) -> list[Tensor | None]:
        """All tensors, in the order in which the operator takes them."""
        return [*self[:3], *self.forward, *self.reverse, *self[5:]]

    @classmethod
    def of_flat(cls, tensors: Sequence[Any]) -> BlockWeights:
        """The inverse of :meth:`flat`."""
        sides = MixerWeights(*tensors[3:10]), MixerWeights(*tensors[10:17])
        norm, in_proj, in_bias = tensors[:3]
        return cls(norm, in_proj, in_bias, *sides, *tensors[17:])


def _check_parameters(
    given: ScanInputs | MixerWeights, lead: ScanInputs | MixerWeights, name: str, channels: int
) -> int:
    """Check what both kinds have, against the sizes of ``lead``; R + 2 N."""
    check_sizes(f'{name}.A', given.A, '(E, N)')
    check_sizes(f'{name}.dt_weight', given.dt_weight, '(E, R)')
    states, rank = lead.A.shape[1], lead.dt_weight.shape[1]
    check_shape(f'{name}.dt_weight', given.dt_weight, (channels, rank), '(E, R)')
    check_shape(f'{name}.dt_bias', given.dt_bias, (channels,), '(E,)')
    check_shape(f'{name}.A', given.A, (channels, states), '(E, N)')
    check_shape(f'{name}.D', given.D, (channels,), '(E,)')
    return rank + 2 * states


class SelectiveInputs(NamedTuple):
    """Inputs of :func:`mmvim_ops.functional.selective_scan`; B and C are (B, L, groups, N)."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    z: Tensor | None = None
    delta_bias: Tensor | None = None


def interleaved(forward: ScanInputs, reverse: ScanInputs) -> list[Tensor]:
    """x_f, x_b, dbl_f, dbl_b, ...: the order in which operators take both directions."""
    return [tensor for pair in zip(forward, reverse) for tensor in pair]


def directions(tensors: Sequence[Any]) -> tuple[ScanInputs, ScanInputs]:
    """Both directions, from their tensors in the order of :func:`interleaved`."""
    return ScanInputs(*tensors[::2]), ScanInputs(*tensors[1::2])


def named(forward: ScanInputs | MixerWeights, reverse: ScanInputs | MixerWeights) -> dict[str, Any]:
    """All values of both directions, by what messages call them."""
    named = {f'forward.{field}': value for field, value in forward._asdict().items()}
    return named | {f'reverse.{field}': value for field, value in reverse._asdict().items()}


def without_absent(values: dict[str, Any]) -> dict[str, Any]:
    """The values by name, without those that are None and may be."""
    optional = ('conv_bias', 'in_bias', 'out_bias', 'gamma')
    return {n: v for n, v in values.items() if v is not None or not n.endswith(optional)}
