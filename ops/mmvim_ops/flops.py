"""Floating-point operations of the ``mmvim::`` operators, for ``torch.utils.flop_counter``.

Importing :mod:`mmvim_ops` registers the formulas, so that ``FlopCounterMode`` counts our operators
beside torch's own. As there, an operation is one addition, multiplication or exponential, a
multiply-accumulate is two, and biases, activations and sums of whole tensors count nothing.

* Scan: 9 N per token and channel, the figure that Mamba's authors give for their parallel scan
  (state-spaces/mamba issue 110) and that others count by. Token by token it is 8 N: dt A and its
  exponential, dt B u (2), a h + b (2), C h and its sum (2). The skip D u adds 2, the gate 1.
* Bidirectional scan: the above for either direction, and the projection of dt, 2 R.
* Convolution: 2 W per token, channel and direction. Normalisation: 4 per element (square, sum,
  two factors).
* Backward passes: twice the forward pass, one product for each of two gradients, and the forward
  pass again where it is recomputed, as in scans and convolutions. All gradients are taken to be
  wanted.

The backends 'reference' and 'mamba_ssm' compute without operators: :func:`through_operators` has
them counted too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from mmvim_ops.backends import override  # all families are declared with their backends
from mmvim_ops.library import FAMILIES

__all__ = ['projection_flops', 'scan_flops', 'through_operators']

Shape = Sequence[int]
_RECOMPUTED = 3  # backward over forward: two gradients, and the forward pass again
_KEPT = 2


def scan_flops(batch: int, length: int, channels: int, states: int, skip: bool, gate: bool) -> int:
    """One direction of a selective scan.

    Args:
        batch (int): B.
        length (int): L.
        channels (int): E.
        states (int): N.
        skip (bool): Whether D u is added.
        gate (bool): Whether the result is multiplied with silu(z).
    """
    return batch * length * channels * (9 * states + 2 * skip + gate)


def projection_flops(batch: int, length: int, inputs: int, outputs: int) -> int:
    """A linear layer on (B, L, inputs)."""
    return 2 * batch * length * inputs * outputs


def _selective(u: Shape, A: Shape, D: Shape | None, z: Shape | None) -> int:
    return scan_flops(u[0], u[1], u[2], A[1], D is not None, z is not None)


def _bidirectional(x: Shape, dt_w: Shape, A: Shape, z: Shape | None) -> int:
    batch, length, channels = x
    scan = scan_flops(batch, length, channels, A[1], skip=True, gate=z is not None)
    return 2 * (scan + projection_flops(batch, length, dt_w[1], channels))


def _convs(x: Shape, *weights: Shape) -> int:
    return sum(2 * x[0] * x[1] * x[2] * weight[1] for weight in weights)


def _norm(x: Shape) -> int:
    return 4 * x[0] * x[1] * x[2]


# What a forward pass costs, and of the shapes of which arguments; how many gradients come before
# these among the arguments of the backward pass, and its cost over that of the forward pass.
_FORMULAS: dict[str, tuple[Callable[..., int], tuple[int, ...], int, int]] = {
    'selective_scan': (_selective, (0, 2, 5, 6), 2, _RECOMPUTED),
    'bidirectional_selective_scan': (_bidirectional, (0, 4, 8, 12), 1, _RECOMPUTED),
    'conv1d_silu': (_convs, (0, 1), 1, _RECOMPUTED),
    'bi_conv1d_silu': (_convs, (0, 1, 3), 2, _RECOMPUTED),
    'add_rms_norm': (_norm, (0,), 2, _KEPT),
}


def _register(name: str, cost: Callable[..., int], places: Sequence[int], factor: int) -> None:
    """Register ``factor`` times a cost for an operator of every family."""

    def formula(*args: Any, **kwargs: Any) -> int:
        return factor * cost(*(args[place] for place in places))

    overloads = [
        getattr(getattr(torch.ops, namespace), f'{prefix}{name}') for namespace, prefix in FAMILIES
    ]
    register_flop_formula(overloads)(formula)


for _name, (_cost, _places, _grads, _factor) in _FORMULAS.items():
    _register(_name, _cost, _places, 1)
    _register(f'{_name}_backward', _cost, [_grads + place for place in _places], _factor)


@contextmanager
def through_operators() -> Iterator[None]:
    """Have all ops of :mod:`mmvim_ops.functional` call an operator here, whatever their backend.

    What is counted then depends on neither the machine nor on ``backend``: where no compiled kernel
    serves an op, its operator runs in pure torch, and on meta tensors not at all.
    """
    with override('auto'):
        yield
