"""Cases of benchmark_ops.py: inputs of a Vim block's scan, and the contenders that run it.

Two parts of a block are measured. ``scan`` is the op ``bidirectional_selective_scan`` alone, from
dt_proj to the gate. ``inner`` is everything between in_proj and out_proj: convolutions, x_proj,
scan, gate, sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarking import published
from mmvim_ops import (
    MixerWeights,
    ScanInputs,
    available_backends,
    bidirectional_selective_scan,
    loading,
    vim_inner,
)

# Embedding dims D of the published sizes (Vim, section 3.4); 'nano' is the demo's.
SIZES = {'nano': 64, 'tiny': 192, 'small': 384, 'base': 768}
PARTS = ('scan', 'inner')
PUBLISHED = 'published'
STATES, WIDTH, SCALE = 16, 4, 0.5
# Threads a channel that our CUDA kernels exist for; the contender's name to the number.
SPLITS = (1, 2, 4, 8, 16)
_BACKWARD_SPLITS = (4, 8, 16)
SPLIT_CONTENDERS = {f'cuda S{split}': split for split in SPLITS}
DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}

Run = Callable[[list[Tensor], list[Tensor]], Tensor]


@dataclass(frozen=True)
class Case:
    """One size of one part.

    Attributes:
        part (str): 'scan' or 'inner'.
        size (str): A name of :data:`SIZES`.
        batch (int): Sequences B.
        length (int): Tokens L.
        dtype (str): Of the activations; parameters stay float32, as under autocast.
    """

    part: str
    size: str
    batch: int
    length: int
    dtype: str

    @property
    def channels(self) -> int:
        """Inner channels E."""
        return 2 * SIZES[self.size]

    @property
    def rank(self) -> int:
        """Rank R of the step's projection."""
        return math.ceil(SIZES[self.size] / 16)

    @property
    def exponentials(self) -> int:
        """exp(dt A) of a forward pass: B L E N, twice."""
        return 2 * self.batch * self.length * self.channels * STATES

    @property
    def special_functions(self) -> int:
        """Results of a GPU's special-function units in a forward pass, as the formulas have it.

        Per token, channel and direction one for each state's decay and two for softplus (a power,
        a logarithm); per token and channel two for the gate (a power, a reciprocal); in the part
        'inner' as many for the convolution of each direction.
        """
        per_direction = STATES + 2 + (2 if self.part == 'inner' else 0)
        return self.batch * self.length * self.channels * (2 * per_direction + 2)

    @property
    def output_bytes(self) -> int:
        """The output, (B, L, E)."""
        return self.batch * self.length * self.channels * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Work:
    """A contender's inputs and function.

    Attributes:
        activations (list[Tensor]): What the block's forward pass produced; they have gradients.
        parameters (list[Tensor]): The block's weights; they have gradients too.
        run (Run): Activations and parameters to the output, (B, L, E).
        split (int): Threads a channel of our CUDA kernels; 0 leaves it to their rule.
    """

    activations: list[Tensor]
    parameters: list[Tensor]
    run: Run
    split: int = 0

    def forward(self) -> Tensor:
        """The forward pass without gradients."""
        with torch.no_grad():
            return self.forward_with_graph()

    def forward_with_graph(self) -> Tensor:
        """The forward pass as training runs it."""
        with _forced(self.split):
            return self.run(self.activations, self.parameters)

    def forward_backward(self) -> tuple[Tensor, ...]:
        """Both passes; the gradients of all activations and parameters."""
        with _forced(self.split):
            out = self.run(self.activations, self.parameters)
            leaves = [*self.activations, *self.parameters]
            return torch.autograd.grad(out, leaves, torch.ones_like(out))

    def least_bytes(self, output_bytes: int) -> dict[str, int]:
        """Bytes that no implementation can avoid to move, by pass.

        Forward, every input is read and the output written once. Backward, the inputs and the
        gradient of the output are read and the gradients of the inputs written.
        """
        inputs = sum(tensor.nbytes for tensor in (*self.activations, *self.parameters))
        forward = inputs + output_bytes
        return {'forward': forward, 'forward + backward': forward + 2 * inputs + output_bytes}


@contextmanager
def _forced(split: int) -> Iterator[None]:
    """Let our CUDA kernels run with so many threads a channel, where they exist; 0: by rule."""
    if not split:
        yield
        return
    loading.force_splits(split, split if split in _BACKWARD_SPLITS else 0)
    try:
        yield
    finally:
        loading.force_splits(0, 0)


def contender_problem(name: str, part: str, device: torch.device) -> str | None:
    """The reason for which a contender cannot run a part on a device, or None."""
    if name == PUBLISHED:
        if part != 'inner':
            return 'the published composition is measured as a whole, from in_proj to out_proj'
        if device.type != 'cuda':
            return 'the kernels of mamba-ssm and causal-conv1d need a CUDA device'
        return published.problem()
    if name == 'auto':
        return None
    backend = 'cuda' if name in SPLIT_CONTENDERS else name
    status = available_backends().get(backend)
    if status is None:
        return f'unknown; valid: auto, {", ".join(available_backends())}, {PUBLISHED}'
    if not status.available:
        return status.note
    needed = {'cpu': 'cpu', 'cuda': 'cuda', 'mamba_ssm': 'cuda'}.get(backend, device.type)
    return None if needed == device.type else f'it runs on {needed}, and --device is {device.type}'


def make_work(name: str, case: Case, device: torch.device) -> Work:
    """Seeded inputs of a case and the contender's way to run it; equal for all contenders.

    Args:
        name (str): A backend of mmvim_ops, 'auto', 'published', or one of :data:`SPLIT_CONTENDERS`.
        case (Case): What to run.
        device (torch.device): Where.
    """
    split = SPLIT_CONTENDERS.get(name, 0)
    backend = 'cuda' if split else name
    generator = torch.Generator().manual_seed(0)
    dtype, channels, rank = DTYPES[case.dtype], case.channels, case.rank

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(shape, generator=generator)

    def pair(*shape: int, scale: float = 1.0) -> list[Tensor]:
        return [draw(*shape, scale=scale) for _ in range(2)]

    tokens = (case.batch, case.length)
    # As initialised (Mamba, section 3.6): steps between 0.001 and 0.1, A = -(1 .. N), D = 1.
    steps = [torch.empty(channels).uniform_(-6.9, -2.3, generator=generator) for _ in range(2)]
    A = -torch.arange(1.0, STATES + 1).repeat(channels, 1)
    parameters = [*pair(channels, rank, scale=rank**-0.5), *steps, A, A.clone()]
    parameters += [torch.ones(channels), torch.ones(channels)]
    if case.part == 'scan':
        activations = [*pair(*tokens, channels), *pair(*tokens, rank + 2 * STATES)]
        activations.append(draw(*tokens, channels))
        run = _scan(backend)
    else:
        activations = [draw(*tokens, 2 * channels)]
        convolution = [*pair(channels, WIDTH, scale=0.5), *pair(channels, scale=0.1)]
        x_proj = pair(rank + 2 * STATES, channels, scale=channels**-0.5)
        parameters = [*convolution, *x_proj, *parameters]
        run = published.inner if name == PUBLISHED else _inner(backend)
        if name == PUBLISHED:
            activations = [published.as_in_proj_leaves_it(activations[0])]
    return Work(
        [tensor.to(device, dtype).requires_grad_() for tensor in activations],
        [tensor.to(device).requires_grad_() for tensor in parameters],
        run,
        split,
    )


def _scan(backend: str) -> Run:
    def run(activations: list[Tensor], parameters: list[Tensor]) -> Tensor:
        x_f, x_b, dbl_f, dbl_b, z = activations
        forward = ScanInputs(x_f, dbl_f, *parameters[::2])
        reverse = ScanInputs(x_b, dbl_b, *parameters[1::2])
        return bidirectional_selective_scan(forward, reverse, z, SCALE, backend=backend)

    return run


def _inner(backend: str) -> Run:
    def run(activations: list[Tensor], parameters: list[Tensor]) -> Tensor:
        x, z = activations[0].chunk(2, dim=-1)  # (B, L, E) each, views
        forward, reverse = MixerWeights(*parameters[::2]), MixerWeights(*parameters[1::2])
        return vim_inner(x, z, forward, reverse, SCALE, backend)

    return run
