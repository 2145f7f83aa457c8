"""Comparison of compiled kernels with pure torch on a GPU, before ``auto`` uses them.

Kernels meet devices, drivers and compilers that nobody tried them on. A small block and its
gradients cost some milliseconds, once; wrong numbers would cost a training.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

import torch
from torch import Tensor

from mmvim_ops.backends.backend import Backend, project
from mmvim_ops.scan_inputs import MixerWeights

__all__ = ['difference']

# Several tiles and a last one that is not full, channels that do not fill the blocks.
_BATCH, _LENGTH, _CHANNELS, _RANK, _WIDTH = 2, 75, 36, 5, 4
# That of Vim and a single one: each has kernels of its own.
_STATES = (16, 1)
# Relative to the size of a result. Kernels are much closer; a mistake is much further off.
_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}


def difference(
    tested: Backend,
    trusted: Backend,
    device: torch.device,
    dtypes: Iterable[torch.dtype] = tuple(_TOLERANCES),
    numbers_of_states: Iterable[int] = _STATES,
) -> str | None:
    """Compare the ops of two backends.

    Args:
        tested (Backend): The one in doubt.
        trusted (Backend): Another one.
        device (torch.device): Where.
        dtypes (Iterable[torch.dtype]): Of activations. Defaults to all that kernels read.
        numbers_of_states (Iterable[int]): N of the scans. Defaults to that of Vim and one.

    Returns:
        The first result that differs, and by how much; None if none does.
    """
    plain = torch.autocast(device.type, enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), plain:
        for dtype, states in product(dtypes, numbers_of_states):
            inputs = _inputs(device, dtype, states)
            pairs = zip(_results(tested, inputs), _results(trusted, inputs))
            for number, (got, expected) in enumerate(pairs):
                got, expected = got.detach().double(), expected.detach().double()
                error = float((got - expected).norm() / expected.norm())
                if not error <= _TOLERANCES[dtype]:  # a NaN is not
                    return (
                        f'result {number} with {states} states in {dtype} differs by {error:.1e} '
                        f'from {trusted.name!r}'
                    )
    return None


def _inputs(device: torch.device, dtype: torch.dtype, states: int) -> list[Tensor]:
    """Seeded inputs of a block: x and z in one tensor, then the weights of both directions."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(shape, generator=generator)

    E, N, R = _CHANNELS, states, _RANK
    xz = draw(_BATCH, _LENGTH, 2 * E).to(device, dtype).requires_grad_()
    parameters = [
        tensor
        for _ in range(2)
        for tensor in (
            *(draw(E, _WIDTH, scale=0.5), draw(E), draw(R + 2 * N, E, scale=E**-0.5)),
            *(draw(E, R, scale=R**-0.5), draw(E) - 2, -draw(E, N).exp(), draw(E)),
        )
    ]
    return [xz, *(parameter.to(device).requires_grad_() for parameter in parameters)]


def _results(backend: Backend, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Outputs and gradients of a block, of float32 sums without a gate and of a normalisation."""
    xz, *parameters = inputs
    x, z = xz.chunk(2, dim=-1)
    forward, reverse = MixerWeights(*parameters[:7]), MixerWeights(*parameters[7:])
    out = backend.vim_inner(x, z, forward, reverse, scale=0.5)
    normed, total = backend.add_rms_norm(out.float(), z, parameters[-1], 1e-5)
    scans = [
        weights.scan_inputs(source, project(source, weights.x_proj))
        for source, weights in ((x, forward), (z, reverse))
    ]
    sums = backend.bidirectional_selective_scan(
        scans[0], scans[1], None, scale=0.5, out_dtype=torch.float32
    )
    outs = (out, normed, total, sums)
    grads = torch.autograd.grad(outs, inputs, [torch.ones_like(each) for each in outs])
    return [*outs, *grads]
