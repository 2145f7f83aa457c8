"""Whether compiled kernels compute on a GPU what pure torch does; ``auto`` asks before using them.

Kernels meet devices, drivers and compilers that nobody tried them on. A small block and its
gradients cost some milliseconds, once; wrong numbers would cost a training.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from mmvim_ops.backends import chunked
from mmvim_ops.backends import native as fused
from mmvim_ops.inner import vim_inner

__all__ = ['difference']

# Several tiles and a last one that is not full, channels that do not fill the blocks.
_BATCH, _LENGTH, _CHANNELS, _STATES, _RANK, _WIDTH = 2, 75, 36, 16, 5, 4
# Relative to the size of a result. Kernels are much closer; a mistake is much further off.
_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}


def difference(device: torch.device) -> str | None:
    """Compare the fused ops with those in pure torch.

    Args:
        device: Where.

    Returns:
        The first result that differs, and by how much; None if none does.
    """
    plain = torch.autocast(device.type, enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), plain:
        for dtype, tolerance in _TOLERANCES.items():
            found = _difference(device, dtype, tolerance)
            if found is not None:
                return found
    return None


def _difference(device: torch.device, dtype: torch.dtype, tolerance: float) -> str | None:
    inputs = _inputs(device, dtype)
    pairs = zip(_results(fused, inputs), _results(chunked, inputs))
    for number, (got, expected) in enumerate(pairs):
        got, expected = got.detach().double(), expected.detach().double()
        error = float((got - expected).norm() / expected.norm())
        if not error <= tolerance:  # a NaN is not
            return f'result {number} in {dtype} differs by {error:.1e} from pure torch'
    return None


def _inputs(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Seeded inputs of a block, in the order of ``vim_inner``; x and z are views."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(shape, generator=generator)

    E, N, R = _CHANNELS, _STATES, _RANK
    xz = draw(_BATCH, _LENGTH, 2 * E).to(device, dtype).requires_grad_()
    parameters = [
        *(draw(E, _WIDTH, scale=0.5), draw(E), draw(E, _WIDTH, scale=0.5), draw(E)),
        *(draw(R + 2 * N, E, scale=E**-0.5) for _ in range(2)),
        *(draw(E, R, scale=R**-0.5) for _ in range(2)),
        *(draw(E) - 2 for _ in range(2)),
        *(-draw(E, N).exp() for _ in range(2)),
        *(draw(E) for _ in range(2)),
    ]
    return [xz, *(parameter.to(device).requires_grad_() for parameter in parameters)]


def _results(implementation: ModuleType, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Outputs and gradients of a block and of a normalisation."""
    xz, *parameters = inputs
    x, z = xz.chunk(2, dim=-1)
    out = vim_inner(
        implementation, x, z, parameters[:4], parameters[4:6], parameters[6:], scale=0.5
    )
    normed, total = implementation.add_rms_norm(out.float(), z, parameters[-1], 1e-5)
    outs = (out, normed, total)
    grads = torch.autograd.grad(outs, inputs, [torch.ones_like(each) for each in outs])
    return [*outs, *grads]
