"""What benchmark_ops.py measures: inputs of a Vim block's scan, and everyone who can run it.

Two parts of a block are measured. ``scan`` is the op ``bidirectional_selective_scan`` alone, from
dt_proj to the gate. ``inner`` is everything between in_proj and out_proj: convolutions, x_proj,
scan, gate, sum.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mmvim_ops import available_backends, bi_conv1d_silu, bidirectional_selective_scan

# Embedding dims D of the published sizes (Vim, section 3.4); 'nano' is the demo's.
SIZES = {'nano': 64, 'tiny': 192, 'small': 384, 'base': 768}
PARTS = ('scan', 'inner')
PUBLISHED = 'published'
_MAMBA_SSM, _CAUSAL_CONV1D = 'mamba_ssm.ops.selective_scan_interface', 'causal_conv1d'
STATES, WIDTH, SCALE = 16, 4, 0.5
DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}

Run = Callable[[list[Tensor], list[Tensor]], Tensor]


@dataclass(frozen=True)
class Case:
    """One size of one part.

    Attributes:
        part: 'scan' or 'inner'.
        size: A name of :data:`SIZES`.
        batch: Sequences B.
        length: Tokens L.
        dtype: Of the activations; parameters stay float32, as under autocast.
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
    def output_bytes(self) -> int:
        """The output, (B, L, E)."""
        return self.batch * self.length * self.channels * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Work:
    """A contender's inputs and function.

    Attributes:
        activations: What the block's forward pass produced; they have gradients.
        parameters: The block's weights; they have gradients too.
        run: Activations and parameters to the output, (B, L, E).
    """

    activations: list[Tensor]
    parameters: list[Tensor]
    run: Run

    def forward(self) -> Tensor:
        """The forward pass without gradients."""
        with torch.no_grad():
            return self.run(self.activations, self.parameters)

    def forward_with_graph(self) -> Tensor:
        """The forward pass as training runs it."""
        return self.run(self.activations, self.parameters)

    def forward_backward(self) -> tuple[Tensor, ...]:
        """Both passes; the gradients of all activations and parameters."""
        out = self.forward_with_graph()
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


def contender_problem(name: str, part: str, device: torch.device) -> str | None:
    """Why a contender cannot run a part on a device, or None."""
    if name == PUBLISHED:
        if part != 'inner':
            return 'the published composition is measured as a whole, from in_proj to out_proj'
        if device.type != 'cuda':
            return 'the kernels of mamba-ssm and causal-conv1d need a CUDA device'
        return _missing(_MAMBA_SSM, _CAUSAL_CONV1D)
    if name == 'auto':
        return None
    status = available_backends().get(name)
    if status is None:
        return f'unknown; valid: auto, {", ".join(available_backends())}, {PUBLISHED}'
    if not status.available:
        return status.note
    needed = {'cpu': 'cpu', 'cuda': 'cuda', 'mamba_ssm': 'cuda'}.get(name, device.type)
    return None if needed == device.type else f'it runs on {needed}, and --device is {device.type}'


def _missing(*modules: str) -> str | None:
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # a binary built for another torch fails in many ways
            return f'{module} cannot be imported ({type(error).__name__}: {error})'
    return None


def make_work(name: str, case: Case, device: torch.device) -> Work:
    """Seeded inputs of a case and the contender's way to run it; equal for all contenders.

    Args:
        name: A backend of mmvim_ops, 'auto', or 'published'.
        case: What to run.
        device: Where.
    """
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
        run = _scan(name)
    else:
        activations = [draw(*tokens, 2 * channels)]
        convolution = [*pair(channels, WIDTH, scale=0.5), *pair(channels, scale=0.1)]
        x_proj = pair(rank + 2 * STATES, channels, scale=channels**-0.5)
        parameters = [*convolution, *x_proj, *parameters]
        run = _published_inner if name == PUBLISHED else _inner(name)
        if name == PUBLISHED:  # its in_proj leaves (B, 2E, L) behind
            activations = [activations[0].transpose(1, 2).contiguous()]
    return Work(
        [tensor.to(device, dtype).requires_grad_() for tensor in activations],
        [tensor.to(device).requires_grad_() for tensor in parameters],
        run,
    )


def _call_scan(activations: list[Tensor], parameters: list[Tensor], backend: str) -> Tensor:
    x_f, x_b, dbl_f, dbl_b, z = activations
    dt_w_f, dt_w_b, dt_b_f, dt_b_b, A_f, A_b, D_f, D_b = parameters
    return bidirectional_selective_scan(
        x_f,
        x_b,
        dbl_f,
        dbl_b,
        dt_w_f,
        dt_w_b,
        dt_b_f,
        dt_b_b,
        A_f,
        A_b,
        D_f,
        D_b,
        z,
        SCALE,
        backend,
    )


def _scan(backend: str) -> Run:
    return lambda activations, parameters: _call_scan(activations, parameters, backend)


def _inner(backend: str) -> Run:
    def run(activations: list[Tensor], parameters: list[Tensor]) -> Tensor:
        w_f, w_b, b_f, b_b, x_proj_f, x_proj_b, *scan = parameters
        x, z = activations[0].chunk(2, dim=-1)  # (B, L, E) each, views
        x_f, x_b = bi_conv1d_silu(x, w_f, b_f, w_b, b_b, backend=backend)
        dbl_f = F.linear(x_f, x_proj_f.to(x.dtype))
        dbl_b = F.linear(x_b, x_proj_b.to(x.dtype))
        return _call_scan([x_f, x_b, dbl_f, dbl_b, z], scan, backend)

    return run


def _published_inner(activations: list[Tensor], parameters: list[Tensor]) -> Tensor:
    """The inner part as Vim's published code composes it from mamba-ssm's and causal-conv1d's ops.

    Channels come first, (B, E, L). The backward direction runs the same causal ops over the flipped
    sequence; its result is flipped back, added, halved, and laid out for out_proj.
    """
    causal_conv1d_fn = importlib.import_module(_CAUSAL_CONV1D).causal_conv1d_fn
    selective_scan_fn = importlib.import_module(_MAMBA_SSM).selective_scan_fn
    w_f, w_b, b_f, b_b, x_proj_f, x_proj_b, *scan = parameters
    dt_w_f, dt_w_b, dt_b_f, dt_b_b, A_f, A_b, D_f, D_b = scan
    (xz,) = activations  # (B, 2E, L)
    dtype, (batch, _, length) = xz.dtype, xz.shape

    def one(
        xz: Tensor, w: Tensor, b: Tensor, x_proj: Tensor, dt_w: Tensor, dt_b: Tensor, *rest: Tensor
    ) -> Tensor:
        A, D = rest
        x, z = xz.chunk(2, dim=1)
        x = causal_conv1d_fn(x, w.to(dtype), b.to(dtype), activation='silu')
        # (B L, R + 2N): the channels of a token are gathered for the product.
        dbl = F.linear(x.transpose(1, 2).reshape(batch * length, -1), x_proj.to(dtype))
        dt, B, C = dbl.split((dt_w.shape[1], A.shape[1], A.shape[1]), dim=-1)
        delta = (dt_w.to(dtype) @ dt.t()).view(-1, batch, length).transpose(0, 1)  # (B, E, L)
        B, C = (m.view(batch, length, -1).transpose(1, 2).contiguous() for m in (B, C))
        y: Tensor = selective_scan_fn(
            x, delta, A, B, C, D, z=z, delta_bias=dt_b, delta_softplus=True
        )
        return y

    out_f = one(xz, w_f, b_f, x_proj_f, dt_w_f, dt_b_f, A_f, D_f)
    out_b = one(xz.flip(-1), w_b, b_b, x_proj_b, dt_w_b, dt_b_b, A_b, D_b)
    return ((out_f + out_b.flip(-1)) * SCALE).transpose(1, 2).contiguous()
