"""The backbone as detectors run it: padded batches of mixed sizes, re-derived from the pixels."""

import math

import derivation
import pytest
import torch
from mmengine.model import ImgDataPreprocessor

from mmvim.checkpoints import to_official
from mmvim.models import VisionMamba

SIZES = ((3, 41, 64), (3, 56, 40))


def build(**options):
    """A float64 model in which nothing is at its initial value, its stored grid 5 x 4."""
    torch.manual_seed(0)
    arch = dict(embed_dims=16, num_layers=3, d_state=4)
    settings = dict(cls_token='none', out_norm='none', out_indices=-1) | options
    model = VisionMamba(arch, img_size=(40, 32), patch_size=8, **settings).double()
    with torch.no_grad():
        for name, param in model.named_parameters():
            param.add_(0.2 * torch.randn_like(param) * (0.2 if 'A_' in name else 1.0))
    return model.eval()


def batch(divisor):
    """Images of mixed sizes, normed, with zeros at the bottom and right to whole divisors."""
    generator = torch.Generator().manual_seed(1)
    images = [torch.randint(0, 256, size, generator=generator) for size in SIZES]
    preprocessor = ImgDataPreprocessor([120.0] * 3, [60.0] * 3, pad_size_divisor=divisor).double()
    inputs = preprocessor(dict(inputs=images))['inputs'].double()
    assert (inputs[0, :, 41:] == 0).all() and (inputs[1, :, :, 40:] == 0).all()
    return inputs


def keys(x):
    """Cubic convolution with a = -0.75 at a distance."""
    x = abs(x)
    if x <= 1:
        return (1.25 * x - 2.25) * x * x + 1
    return -0.75 * (((x - 5) * x + 8) * x - 4) if x < 2 else 0.0


def resampling(source, target):
    """Matrix (target, source) of bicubic interpolation along one axis, edges repeated."""
    matrix = torch.zeros(target, source, dtype=torch.float64)
    for row in range(target):
        centre = (row + 0.5) * source / target - 0.5
        for column in range(math.floor(centre) - 1, math.floor(centre) + 3):
            matrix[row, min(max(column, 0), source - 1)] += keys(column - centre)
    return matrix


def tokens_of(weights, image, stored):
    """Patches row by row, projected, with their rows of the interpolated position embedding."""
    rows, columns = image.shape[1] // 8, image.shape[2] // 8
    projection = weights['patch_embed.proj.weight'].flatten(1)
    tokens = [
        projection @ image[:, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8].flatten()
        + weights['patch_embed.proj.bias']
        for i in range(rows)
        for j in range(columns)
    ]
    table = weights['pos_embed'].reshape(*stored, -1)
    table = torch.einsum(
        'ih,jw,hwd->ijd', resampling(stored[0], rows), resampling(stored[1], columns), table
    )
    return torch.stack(tokens) + table.reshape(rows * columns, -1), (rows, columns)


@pytest.mark.parametrize('rope, tolerance', [('none', 1e-10), ('hidden', 1e-6), ('both', 1e-6)])
@pytest.mark.parametrize('divisor, grid', [(32, (8, 8)), (8, (7, 8))])
def test_hidden_plus_residual_without_norm(rope, tolerance, divisor, grid):
    model = build(rope=rope)
    inputs = batch(divisor)
    with torch.no_grad():
        (found,) = model(inputs)
        weights = to_official(model.state_dict(), 'none')
        assert not any(key.startswith('norm_f') for key in weights)
        expected = []
        for image in inputs:
            tokens, cells = tokens_of(weights, image, (5, 4))
            assert cells == grid
            taps = derivation.vision_mamba(
                weights, tokens, 3, rope_mode=rope, grid=grid, patches=range(len(tokens))
            )
            expected.append(sum(taps[2]).T.reshape(16, *grid))
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=tolerance)


def test_an_image_does_not_see_the_others_of_its_batch():
    model = build()
    inputs = batch(32)
    with torch.no_grad():
        alone = torch.cat([model(image[None])[0] for image in inputs])
        torch.testing.assert_close(model(inputs)[0], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize('rope', ['none', 'both'])
def test_recomputed_activations_change_nothing(rope):
    inputs, gradients = batch(32), []
    for with_cp in (False, True):
        model = build(rope=rope, with_cp=with_cp)
        (out,) = model.train()(inputs)
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        gradients.append([param.grad for param in model.parameters()])
    assert all(grad is not None and grad.abs().max() > 0 for grad in gradients[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-12)
