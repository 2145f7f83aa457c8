"""Patch embeddings for other channels and patch sizes: what is kept of a token."""

import pytest
import torch
import torch.nn.functional as F

from mmvim.checkpoints.patch_embed import adapt_channels, fit_patch_embed, resize_kernel

KERNEL = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def tokens(patches, kernel):
    """Of patches (B, C, h, w): (B, D)."""
    return torch.einsum('bchw,dchw->bd', patches, kernel)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16])
def test_what_fits_is_the_same_bit_for_bit(dtype):
    kernel = KERNEL.to(dtype)
    for how in ('mean', 'repeat'):
        fitted, said = fit_patch_embed(kernel, kernel.shape, how)
        assert torch.equal(fitted, kernel) and fitted.dtype == dtype and said == ''


@pytest.mark.parametrize('size', [(8, 8), (4, 7), (5, 12), (16, 4), (4, 4)])
def test_patches_that_grow_with_their_images_keep_their_token(size):
    patches = torch.randn(6, 3, 4, 4, dtype=torch.float64)
    grown = F.interpolate(patches, size=size, mode='bilinear', align_corners=False)
    kernel = resize_kernel(KERNEL, size)
    assert kernel.shape == (5, 3, *size)
    torch.testing.assert_close(tokens(grown, kernel), tokens(patches, KERNEL), rtol=0, atol=1e-10)


@pytest.mark.parametrize('size', [(8, 6), (2, 3), (7, 2)])
def test_the_pseudo_inverse_is_that_of_the_whole_patch(size):
    """Row by row and column by column gives what FlexiViT's one matrix for both gives."""
    pixels = torch.eye(16, dtype=torch.float64).reshape(16, 1, 4, 4)
    matrix = F.interpolate(pixels, size=size, mode='bilinear', align_corners=False).flatten(1)
    whole = torch.linalg.pinv(matrix) @ KERNEL.flatten(2).transpose(1, 2)
    expected = whole.transpose(1, 2).reshape(5, 3, *size)
    torch.testing.assert_close(resize_kernel(KERNEL, size), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('channels', [1, 2, 4, 12])
@pytest.mark.parametrize('how', ['mean', 'repeat'])
def test_channels(how, channels):
    kernel = adapt_channels(KERNEL, channels, how)
    assert kernel.shape == (5, channels, 4, 4)
    grey = torch.randn(6, 1, 4, 4, dtype=torch.float64)
    before, after = (tokens(grey.expand(-1, k.shape[1], -1, -1), k) for k in (KERNEL, kernel))
    if how == 'mean' or channels % 3 == 0:
        torch.testing.assert_close(after, before, rtol=0, atol=1e-12)
    for i in range(channels):
        one = KERNEL.mean(1) if how == 'mean' else KERNEL[:, i % 3]
        torch.testing.assert_close(kernel[:, i], one * 3 / channels, rtol=0, atol=1e-14)


def test_both_at_once_and_what_is_said():
    fitted, said = fit_patch_embed(KERNEL, torch.Size((5, 4, 8, 4)), 'repeat')
    assert said == '3 channels to 4 (repeat), patches of 4×4 to 8×4 (pseudo-inverse)'
    expected = resize_kernel(adapt_channels(KERNEL, 4, 'repeat'), (8, 4))
    assert torch.equal(fitted, expected)
