"""Effective receptive fields: exact where the architecture tells them."""

import pytest
import torch
from torch import nn

from mmvim.analysis.backbone_maps import feature_maps
from mmvim.analysis.receptive_field import effective_receptive_field
from mmvim.models import VisionMamba

PATCH = 4


def field_of(grid, images=2, **options):
    """Share of the field in each patch, (H, W), of a seeded untrained backbone in float64."""
    torch.manual_seed(0)
    size = tuple(cells * PATCH for cells in grid)
    arch = dict(embed_dims=8, num_layers=options.pop('num_layers', 1), d_state=4)
    model = VisionMamba(arch, img_size=size, patch_size=PATCH, **options).double().eval()
    x = torch.rand(images, 3, *size, dtype=torch.float64)

    def deepest(image):
        return feature_maps(model, image, model.out_indices)[-1]

    field = effective_receptive_field(deepest, x)
    assert field.shape == size
    return field.unflatten(0, (grid[0], PATCH)).unflatten(2, (grid[1], PATCH)).sum(dim=(1, 3))


@pytest.mark.parametrize('out_type', ['featmap', 'avg_featmap', 'raw'])
@pytest.mark.parametrize('cls_token', ['none', 'head', 'middle', 'double'])
@pytest.mark.parametrize('grid', [(4, 4), (5, 5), (3, 4), (4, 7)])
def test_one_way_scan_is_zero_beyond_the_centre(grid, cls_token, out_type):
    """Convolution and scan reach back alone: exactly zero after the centre in raster order.

    A class token in between takes a place in the sequence but moves no patch past another.
    """
    field = field_of(grid, direction='none', cls_token=cls_token, out_type=out_type)
    centre = (grid[0] // 2) * grid[1] + grid[1] // 2
    before, after = field.flatten()[: centre + 1], field.flatten()[centre + 1 :]
    assert len(after) and (after == 0).all()
    assert (before > 0).all()


@pytest.mark.parametrize('grid', [(4, 4), (5, 5), (4, 7)])
def test_the_other_way_is_zero_before_the_centre(grid):
    """The second block of 'block' scans backwards; with the first one silenced it is alone."""
    torch.manual_seed(0)
    size = tuple(cells * PATCH for cells in grid)
    arch = dict(embed_dims=8, num_layers=2, d_state=4)
    options = dict(img_size=size, patch_size=PATCH, direction='block', cls_token='middle')
    model = VisionMamba(arch, **options).double().eval()
    nn.init.zeros_(model.layers[0].mixer.out_proj.weight)
    x = torch.rand(1, 3, *size, dtype=torch.float64)
    field = effective_receptive_field(lambda image: feature_maps(model, image, (1,))[-1], x)
    sums = field.unflatten(0, (grid[0], PATCH)).unflatten(2, (grid[1], PATCH)).sum(dim=(1, 3))
    centre = (grid[0] // 2) * grid[1] + grid[1] // 2
    assert (sums.flatten()[:centre] == 0).all()
    assert (sums.flatten()[centre:] > 0).all()


@pytest.mark.parametrize('direction', ['ssm', 'ssm_conv'])
def test_both_ways_reach_everything(direction):
    assert (field_of((4, 5), direction=direction) > 0).all()


def test_overlapping_patches_reach_to_the_end_of_the_centre_patch():
    """Stride 2 on patches of 4: the last pixel that counts belongs to the centre token's patch."""
    torch.manual_seed(0)
    arch = dict(embed_dims=8, num_layers=1, d_state=4)
    options = dict(img_size=16, patch_size=4, patch_stride=2, direction='none')
    model = VisionMamba(arch, **options).double().eval()
    x = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    field = effective_receptive_field(lambda image: feature_maps(model, image, (0,))[-1], x)
    # A grid of 7 x 7; the centre, row 3 and column 3, covers pixels 6 to 9; the row before it
    # all columns of pixels 4 to 7.
    assert (field[10:] == 0).all() and (field[8:10, 10:] == 0).all()
    assert (field[:8] > 0).all() and (field[8:10, :10] > 0).all()


def test_a_known_gradient():
    """A 3 x 3 convolution: its kernel, absolute, around the centre."""
    conv = nn.Conv2d(2, 3, 3, padding=1).double()
    x = torch.rand(4, 2, 6, 7, dtype=torch.float64)
    field = effective_receptive_field(conv, x)
    expected = torch.zeros(6, 7, dtype=torch.float64)
    expected[2:5, 2:5] = conv.weight.sum(dim=0).abs().sum(dim=0)  # around row 3, column 3
    torch.testing.assert_close(field, expected, rtol=0, atol=1e-12)
    assert not x.requires_grad


def test_images_are_averaged_without_cancelling():
    """Gradients of opposite sign in two images count both."""

    def features(images):
        sign = torch.tensor([1.0, -3.0]).reshape(2, 1, 1, 1)
        return images * sign

    field = effective_receptive_field(features, torch.rand(2, 1, 3, 3))
    assert field[1, 1] == 2.0 and field.sum() == 2.0
