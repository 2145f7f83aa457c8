"""Cases of benchmark_ops.py: inputs of a Vim block's scan, and the contenders that run it.

Two parts of a block are measured. ``scan`` is the op ``bidirectional_selective_scan`` alone, from
dt_proj to the gate. ``inner`` is everything between in_proj and out_proj: convolutions, x_proj,
scan, gate, sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarking import published
from mmvim_ops import MixerWeights, ScanInputs, bidirectional_selective_scan, loading, vim_inner

# Embedding dims D of the published sizes (Vim, section 3.4); 'nano' is the demo's.
SIZES = {'nano': 64, 'tiny': 192, 'small': 384, 'base': 768}
PARTS, PASSES = ('scan', 'inner'), ('forward', 'forward + backward')
PUBLISHED = 'published'
STATES, WIDTH, SCALE = 16, 4, 0.5
# Threads a channel that our CUDA kernels exist for, forwards and backwards (0: the rule's), and
# whether those for blocks of a Vim alone are left out, by the name of the contender that is held to
# them.
SPLITS = {
    f'cuda S{split}{form}': (split, split if split >= 4 else 0, form != '')
    for form, splits in {'': (1, 2, 4, 8, 16), '-general': (4, 8, 16)}.items()
    for split in splits
}


class Case(NamedTuple):
    """One size of one part: B sequences of L tokens.

    ``dtype`` is that of the activations; parameters stay float32, as under autocast.
    """

    part: str
    size: str
    batch: int
    dtype: str
    length: int

    @property
    def channels(self) -> int:
        """Inner channels E."""
        return 2 * SIZES[self.size]


class Work(NamedTuple):
    """A contender's inputs and function.

    Attributes:
        activations (list[Tensor]): What the block's forward pass produced; they have gradients.
        parameters (list[Tensor]): The block's weights; they have gradients too.
        run (Callable): Activations and parameters to the output, (B, L, E).
        within (Callable): The context that both passes run in.
    """

    activations: list[Tensor]
    parameters: list[Tensor]
    run: Callable[[list[Tensor], list[Tensor]], Tensor]
    within: Callable[[], AbstractContextManager[None]] = nullcontext

    def forward(self) -> Tensor:
        """The forward pass as training runs it."""
        with self.within():
            return self.run(self.activations, self.parameters)

    def call(self, kind: str) -> object:
        """One of :data:`PASSES`: the output without gradients; the gradients of all tensors."""
        if kind == 'forward':
            with torch.no_grad():
                return self.forward()
        with self.within():
            out = self.run(self.activations, self.parameters)
            leaves = [*self.activations, *self.parameters]
            return torch.autograd.grad(out, leaves, torch.ones_like(out))

    def least_bytes(self, kind: str) -> int:
        """Bytes that no implementation can avoid to move in one of :data:`PASSES`.

        Forward, every input is read and the output written once. Backward, the inputs and the
        gradient of the output are read and the gradients of the inputs written.
        """
        inputs = sum(tensor.nbytes for tensor in (*self.activations, *self.parameters))
        z = self.activations[-1]  # (B, L, E) in a scan; xz of `inner` has 2E channels
        output = z.nbytes // (2 if len(self.activations) == 1 else 1)
        return inputs + output if kind == 'forward' else 3 * inputs + 2 * output


@contextmanager
def _held_to(name: str) -> Iterator[None]:
    """Let the CUDA kernels have the threads a channel of a contender of :data:`SPLITS`."""
    forward, backward, general = SPLITS[name]
    loading.force_splits(forward, backward, general=general)
    try:
        yield
    finally:
        loading.force_splits()


def make_work(name: str, case: Case, device: torch.device) -> Work:
    """Seeded inputs of a case and the contender's way to run it; equal for all contenders.

    Args:
        name (str): A backend of mmvim_ops, 'auto', 'published', or one of :data:`SPLITS`.
        case (Case): What to run.
        device (torch.device): Where.
    """
    generator = torch.Generator().manual_seed(0)
    channels, rank = case.channels, math.ceil(SIZES[case.size] / 16)
    columns = rank + 2 * STATES
    backend = 'cuda' if name in SPLITS else name

    def pair(*shape: int, scale: float = 1.0) -> list[Tensor]:
        return [scale * torch.randn(shape, generator=generator) for _ in range(2)]

    def scan(activations: list[Tensor], parameters: list[Tensor]) -> Tensor:
        x_f, x_b, dbl_f, dbl_b, z = activations
        forward = ScanInputs(x_f, dbl_f, *parameters[::2])
        reverse = ScanInputs(x_b, dbl_b, *parameters[1::2])
        return bidirectional_selective_scan(forward, reverse, z, SCALE, backend=backend)

    def inner(activations: list[Tensor], parameters: list[Tensor]) -> Tensor:
        x, z = activations[0].chunk(2, dim=-1)  # (B, L, E) each, views
        forward, reverse = MixerWeights(*parameters[::2]), MixerWeights(*parameters[1::2])
        return vim_inner(x, z, forward, reverse, SCALE, backend)

    # As initialised (Mamba, section 3.6): steps between 0.001 and 0.1, A = -(1 .. N), D = 1.
    steps = [torch.empty(channels).uniform_(-6.9, -2.3, generator=generator) for _ in range(2)]
    A = -torch.arange(1.0, STATES + 1).repeat(channels, 1)
    D = torch.ones(channels)
    parameters = [*pair(channels, rank, scale=rank**-0.5), *steps, A, A.clone(), D, D.clone()]
    shapes, run = [channels, channels, columns, columns, channels], scan
    if case.part == 'inner':
        convolution = [*pair(channels, WIDTH, scale=0.5), *pair(channels, scale=0.1)]
        parameters = [*convolution, *pair(columns, channels, scale=channels**-0.5), *parameters]
        shapes, run = [2 * channels], inner
    activations = [torch.randn(case.batch, case.length, n, generator=generator) for n in shapes]
    if name == PUBLISHED:
        run, activations = published.inner, [published.as_in_proj_leaves_it(activations[0])]
    dtype = getattr(torch, case.dtype)
    return Work(
        [tensor.to(device, dtype).requires_grad_() for tensor in activations],
        [tensor.to(device).requires_grad_() for tensor in parameters],
        run,
        partial(_held_to, name) if name in SPLITS else nullcontext,
    )
