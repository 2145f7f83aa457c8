"""Patch embeddings for other numbers of channels and other patch sizes: pure functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F

PATCH_EMBEDS = ('mean', 'repeat', 'skip')


def adapt_channels(kernel: torch.Tensor, in_channels: int, how: str) -> torch.Tensor:
    """Adapt a patch embedding to images of another number of channels.

    Both ways keep the size of the response: an image whose channels are all equal gets the token
    that it got before, with 'repeat' if one number of channels is a multiple of the other's.

    Args:
        kernel (torch.Tensor): Shape (D, C, h, w).
        in_channels (int): Channels of the new images, C'.
        how (str): 'mean' gives every channel the mean over the old ones, 'repeat' channel i that
            of old channel i mod C; times C / C'.

    Returns:
        torch.Tensor: Shape (D, C', h, w), in float64; the values themselves for C' = C.
    """
    kernel = kernel.double()
    channels = kernel.shape[1]
    if channels == in_channels:
        return kernel
    if how == 'mean':
        kernel = kernel.mean(dim=1, keepdim=True)
    repeats = -(-in_channels // kernel.shape[1])
    return kernel.repeat(1, repeats, 1, 1)[:, :in_channels] * (channels / in_channels)


def resize_kernel(kernel: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Adapt a patch embedding to another patch size, by FlexiViT's pseudo-inverse.

    With B the matrix that resizes a patch bilinearly, the kernel w becomes the least-norm ŵ for
    which ⟨B x, ŵ⟩ is nearest to ⟨x, w⟩: the pseudo-inverse of Bᵀ times w (arXiv 2212.08013, Sec.
    3.4). Where patches grow, the token of a patch that grows likewise is kept.

    Args:
        kernel (torch.Tensor): Shape (D, C, h, w).
        size (tuple[int, int]): Height and width of the new patches (h', w').

    Returns:
        torch.Tensor: Shape (D, C, h', w'), in float64; the values themselves for the same size.
    """
    kernel = kernel.double()
    for axis, length in enumerate(size, start=2):
        if kernel.shape[axis] != length:  # rows and columns are resized one after the other
            inverse = torch.linalg.pinv(_resizing(kernel.shape[axis], length).T)
            kernel = torch.tensordot(kernel, inverse, dims=([axis], [1])).movedim(-1, axis)
    return kernel


def _resizing(source: int, target: int) -> torch.Tensor:
    """The matrix (target, source) that resizes a line of pixels linearly."""
    lines = torch.eye(source, dtype=torch.float64)[None]  # (1, source, source): lines as channels
    return F.interpolate(lines, size=target, mode='linear', align_corners=False)[0].T


def fit_patch_embed(kernel: torch.Tensor, wanted: torch.Size, how: str) -> tuple[torch.Tensor, str]:
    """Adapt a patch embedding to a model of other channels or another patch size.

    Args:
        kernel (torch.Tensor): Shape (D, C, h, w).
        wanted (torch.Size): That of the model, (D, C', h', w').
        how (str): 'mean' or 'repeat', see :func:`adapt_channels`.

    Returns:
        tuple[torch.Tensor, str]: The kernel in its own dtype, and what was done, for the log.
    """
    adapted = resize_kernel(adapt_channels(kernel, wanted[1], how), (wanted[2], wanted[3]))
    said = []
    if kernel.shape[1] != wanted[1]:
        said.append(f'{kernel.shape[1]} channels to {wanted[1]} ({how})')
    if kernel.shape[2:] != wanted[2:]:
        before, after = (f'{rows}×{columns}' for rows, columns in (kernel.shape[2:], wanted[2:]))
        said.append(f'patches of {before} to {after} (pseudo-inverse)')
    return adapted.to(kernel.dtype), ', '.join(said)
