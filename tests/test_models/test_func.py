"""The backbone under the transforms of torch.func."""

import pytest
import torch
from torch.func import functional_call, grad, vmap

from mmvim.models import VisionMamba


@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(direction='none', scan_backend='chunked'),
        dict(scan_backend='reference'),
    ],
)
def test_gradients_per_image(options):
    """As differential privacy and meta-learning take them: ``vmap`` of ``grad``."""
    torch.manual_seed(0)
    arch = dict(embed_dims=8, num_layers=2, d_state=3)
    model = VisionMamba(arch, img_size=16, patch_size=8, **options)
    images = torch.randn(3, 3, 16, 24)
    weights = torch.randn(1, 8, 2, 3)
    state = dict(model.named_parameters())

    def loss(params, image):
        return (functional_call(model, params, (image[None],))[0] * weights).sum()

    found = vmap(grad(loss), in_dims=(None, 0))(state, images)
    for index, image in enumerate(images):
        model.zero_grad()
        loss(state, image).backward()
        for name, param in model.named_parameters():
            torch.testing.assert_close(found[name][index], param.grad, rtol=1e-4, atol=1e-5)
