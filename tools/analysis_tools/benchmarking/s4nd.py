"""S4ND-ViT in plain torch: a ViT whose attention is a global convolution by a state space model.

From `S4ND <https://arxiv.org/abs/2210.06583>`_, in the form of its 1-D experiment on ImageNet, on
what `S4 <https://arxiv.org/abs/2111.00396>`_ (Sec. 3, Algorithm 1) says about the kernel.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def legs(states: int) -> tuple[Tensor, Tensor, Tensor]:
    """HiPPO-LegS as a diagonal matrix less a product of rank 1, diag(λ) - p pᴴ (S4, Sec. 3.2).

    Returns:
        tuple[Tensor, Tensor, Tensor]: λ, p and b, (states / 2,) each, complex128: the states with
        Im λ < 0, whose conjugates are the other half.
    """
    n = torch.arange(states, dtype=torch.float64)
    p, b = (n + 0.5).sqrt(), (2 * n + 1).sqrt()
    skew = p[:, None] * p  # HiPPO's matrix plus p pᵀ is this, skew, less half the identity
    skew = (skew.triu(1) - skew.tril(-1)).to(torch.complex128)
    frequencies, vectors = torch.linalg.eigh(-1j * skew)
    half = states // 2  # eigenvalues ascend, and are as many below 0 as above
    basis = vectors[:, :half].mH
    return -0.5 + 1j * frequencies[:half], basis @ p.to(basis.dtype), basis @ b.to(basis.dtype)


class S4Layer(nn.Module):
    """A bidirectional S4 layer: convolution with the kernels of both directions, GELU, GLU.

    All channels share λ, p and b, as published. Ā and b̄ being the bilinear discretisation, C is
    stored as C̃ = c (I - Ā^taps), from which the kernel of ``taps`` tokens follows without powers;
    a new layer draws C̃ itself. Kernels and transforms are computed in at least float32.

    Args:
        channels (int): H.
        taps (int): Tokens that a kernel reaches, each way. Longer sequences keep to it.
        states (int): Defaults to 64.
        heads (int): Kernels of a channel each way. Defaults to 2.
    """

    def __init__(self, channels: int, taps: int, states: int = 64, heads: int = 2) -> None:
        super().__init__()
        self.taps, self.heads = taps, heads
        diagonal, p, b = (part.to(torch.complex64) for part in legs(states))
        self.log_decay = nn.Parameter((-diagonal.real).log())
        self.frequency = nn.Parameter(-diagonal.imag)
        self.P = nn.Parameter(torch.view_as_real(p).clone())
        self.B = nn.Parameter(torch.view_as_real(b).clone())
        # Rows: the heads forward, then the heads backward.
        self.C = nn.Parameter(torch.randn(2 * heads, channels, states // 2, 2) * 0.5**0.5)
        shortest, longest = math.log(0.001), math.log(0.1)
        self.log_step = nn.Parameter(torch.empty(channels).uniform_(shortest, longest))
        self.D = nn.Parameter(torch.randn(heads, channels))
        self.out = nn.Linear(heads * channels, 2 * channels)
        nn.init.trunc_normal_(self.out.weight, std=0.02)
        nn.init.zeros_(self.out.bias)
        # What evaluation multiplies the spectra of whole sequences by.
        self.spectrum: Tensor | None
        self.register_buffer('spectrum', None, persistent=False)

    def train(self, mode: bool = True) -> S4Layer:
        """Switch the mode; evaluation keeps the spectrum of the weights as they are now."""
        super().train(mode)
        with torch.no_grad():
            self.spectrum = None if mode else self.make_spectrum(self.taps)
        return self

    def kernel(self) -> Tensor:
        """The kernels, (2 · heads, H, taps): of row r, c_r Ā^j b̄ at token j.

        Their generating function at the roots of unity is a sum over the states (S4, Sec. 3.3), by
        Woodbury's identity for the product of rank 1. It stands here with the factor (1 + ω) / 2
        drawn out, and so is finite at ω = -1 too.
        """
        with torch.autocast(self.C.device.type, enabled=False):
            P, B, C = (torch.view_as_complex(x) for x in (self.P, self.B, self.C))
            diagonal = torch.complex(-self.log_decay.exp(), -self.frequency)  # (N / 2,)
            step = self.log_step.exp()[:, None]  # (H, 1)
            powers = torch.arange(self.taps // 2 + 1, device=C.device, dtype=step.dtype)
            root = torch.polar(torch.ones_like(powers), -2 * torch.pi / self.taps * powers)
            half = (1 + root) / 2
            # Numerators, (rows, H, N): C̃ b, C̃ p, p* b and p* p, and all states' conjugates.
            shared = torch.stack([P.conj() * B, P.conj() * P])[:, None].expand(-1, C.shape[1], -1)
            numerators = torch.cat([C * B, C * P, shared])
            numerators = torch.cat([numerators, numerators.conj()], dim=-1)
            diagonal = torch.cat([diagonal, diagonal.conj()])
            denominators = (1 - root)[:, None] - half[:, None] * (step * diagonal)[:, None]
            sums = torch.einsum('rhn,hln->rhl', step * numerators, 1 / denominators)
            by_b, by_p, (pb, pp) = sums.split((len(C), len(C), 2))
            return torch.fft.irfft(by_b - by_p * half * pb / (1 + half * pp), n=self.taps)

    def make_spectrum(self, length: int) -> Tensor:
        """Both directions for a sequence of ``length`` tokens as one circular convolution.

        Returns:
            Tensor: Shape (heads, H, size // 2 + 1), complex; size is length + taps, taps being cut
            to the length.
        """
        # Training recomputes it in the backward pass. Kept, its sums over states would be most of
        # the memory; the published ones are compiled and never hold them.
        kernel = checkpoint(self.kernel, use_reentrant=False) if self.training else self.kernel()
        forward, backward = kernel[..., :length].split(self.heads)
        # The backward kernel begins at the next token.
        whole = torch.cat([forward, forward.new_zeros(*forward.shape[:-1], length)], dim=-1)
        whole = whole + F.pad(backward.flip(-1), (length, 0))
        return torch.fft.rfft(whole)

    def convolve(self, x: Tensor) -> Tensor:
        """(B, L, H) to (B, heads, H, L), in at least float32: convolution and skip."""
        length = x.shape[1]
        cached = self.spectrum is not None and length == self.taps
        spectrum = self.spectrum if cached else self.make_spectrum(length)
        u = x.to(torch.promote_types(x.dtype, torch.float32)).transpose(1, 2)  # (B, H, L)
        size = length + min(length, self.taps)
        with torch.autocast(x.device.type, enabled=False):
            y = torch.fft.irfft(torch.fft.rfft(u, n=size)[:, None] * spectrum, n=size)
        return y[..., :length] + self.D[..., None] * u[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, H) to the same."""
        y = F.gelu(self.convolve(x).flatten(1, 2)).transpose(1, 2)
        return F.glu(self.out(y.to(x.dtype)), dim=-1)


class S4NDViT(nn.Module):
    """Patches in one row-major sequence, pre-norm blocks of an S4 layer and an MLP, the mean.

    No class token, no position embedding.

    Args:
        channels (int): H; 768 for the published size, ViT-B.
        grid (int): Side of the patch grid; its tokens are what the kernels reach.
        patch_size (int): Side of a patch. Defaults to 16.
        depth (int): Blocks. Defaults to 12.
        taps (tuple[int, ...]): Blocks whose maps (B, H, h, w) to return in place of the normalised
            mean (B, H). Defaults to ().
        **layer (Any): The other arguments of :class:`S4Layer`.
    """

    def __init__(
        self,
        channels: int,
        grid: int,
        patch_size: int = 16,
        depth: int = 12,
        taps: tuple[int, ...] = (),
        **layer: Any,
    ) -> None:
        super().__init__()
        self.taps = taps
        self.patch_embed = nn.Conv2d(3, channels, patch_size, patch_size)
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            mlp = [nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)]
            for linear in (mlp[0], mlp[2]):
                nn.init.trunc_normal_(linear.weight, std=0.02)
                nn.init.zeros_(linear.bias)
            for part in (S4Layer(channels, grid**2, **layer), nn.Sequential(*mlp)):
                self.blocks.append(nn.Sequential(nn.LayerNorm(channels), part))
        # Nothing behind the last tap reads a final norm.
        self.norm = nn.Identity() if taps else nn.LayerNorm(channels)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Images (B, 3, height, width) to what ``taps`` says."""
        x = self.patch_embed(image)
        grid = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        maps = []
        for number, part in enumerate(self.blocks):
            x = x + part(x)
            if number % 2 and number // 2 in self.taps:
                maps.append(x.transpose(1, 2).unflatten(2, grid))
        return tuple(maps) if maps else self.norm(x).mean(dim=1)
