"""Thousands of random shapes and options: no crash, no NaN, the right shape.

In evaluation a second run gives the same bits, and an image the same with or without others.
"""

import math
import random

import pytest
import torch

from mmvim.models import VisionMamba
from mmvim.models.token_layout import CLS_TOKENS, OUT_TYPES

CASES = 6000


def random_options(rng):
    """Valid options of a small backbone, and an image size."""
    layers = rng.randint(1, 3)
    direction = rng.choice(VisionMamba.DIRECTIONS)
    if direction == 'block_published':
        layers = 2
    rope = rng.choice(VisionMamba.ROPES)
    dims = 4 * rng.randint(1, 4) if rope != 'none' else rng.randint(1, 17)
    cls_token = rng.choice(tuple(CLS_TOKENS))
    out_types = [
        name
        for name in OUT_TYPES
        if cls_token != 'none' or name not in ('cls_token', 'featmap_cls')
    ]
    tap = rng.choice(VisionMamba.TAPS)
    indices = rng.sample(range(layers), rng.randint(1, layers))
    patch = rng.randint(1, 5), rng.randint(1, 5)
    options = dict(
        arch=dict(
            embed_dims=dims,
            num_layers=layers,
            d_state=rng.randint(1, 17),
            d_conv=rng.randint(1, 5),
            expand=rng.randint(1, 3),
            dt_rank=rng.choice(['auto', 1, 3]),
            conv_bias=rng.random() < 0.5,
            proj_bias=rng.random() < 0.5,
        ),
        img_size=(patch[0] + rng.randint(0, 12), patch[1] + rng.randint(0, 12)),
        patch_size=patch,
        patch_stride=rng.choice([None, (rng.randint(1, 6), rng.randint(1, 6))]),
        in_channels=rng.randint(1, 4),
        direction=direction,
        average_directions=rng.random() < 0.5,
        cls_token=cls_token,
        pos_embed=rng.random() < 0.8,
        interpolate_mode=rng.choice(VisionMamba.INTERPOLATE_MODES),
        rope=rope,
        out_indices=[1] if direction == 'block_published' else indices,
        out_type=rng.choice(out_types),
        tap=tap,
        out_norm='none' if tap == 'mixer' else rng.choice(VisionMamba.OUT_NORMS),
        norm_cfg=rng.choice([dict(type='RMSNorm', eps=1e-5), dict(type='LN', eps=1e-6)]),
        layer_scale_init=rng.choice([None, 0.1]),
        drop_rate=rng.choice([0.0, 0.3]),
        drop_path_rate=rng.choice([0.0, 0.3]),
        frozen_stages=rng.randint(-1, layers),
        with_cp=rng.random() < 0.2,
    )
    return options, (patch[0] + rng.randint(0, 20), patch[1] + rng.randint(0, 20))


def flattened(taps, image=slice(None)):
    """All numbers of the taps, or those of one image, in one row."""
    tensors = [t for tap in taps for t in (tap if isinstance(tap, tuple) else (tap,))]
    return torch.cat([tensor[image].flatten() for tensor in tensors])


@pytest.mark.slow
def test_backbone():
    rng = random.Random(0)
    torch.manual_seed(0)
    for case in range(CASES):
        options, size = random_options(rng)
        model = VisionMamba(**options).train(rng.random() < 0.5)
        batch = rng.randint(1, 2)
        images = torch.randn(batch, options['in_channels'], *size)
        taps = model(images)
        stride = options['patch_stride'] or options['patch_size']
        grid = [
            math.ceil(max(n - p, 0) / s) + 1 for n, p, s in zip(size, options['patch_size'], stride)
        ]
        dims = options['arch']['embed_dims']
        vector, featmap = (batch, dims), (batch, dims, *grid)
        length = math.prod(grid) + CLS_TOKENS[options['cls_token']]
        expected = {
            'featmap': [featmap],
            'cls_token': [vector],
            'avg_featmap': [vector],
            'featmap_cls': [featmap, vector],
            'raw': [(batch, length, dims)],
        }[options['out_type']]
        assert len(taps) == len(options['out_indices']), (case, options)
        for tap in taps:
            tensors = tap if isinstance(tap, tuple) else (tap,)
            assert [tuple(tensor.shape) for tensor in tensors] == expected, (case, options)
            assert all(tensor.isfinite().all() for tensor in tensors), (case, options)
        if not model.training and case % 4 == 0:
            assert torch.equal(*map(flattened, (taps, model(images)))), (case, options)
            alone = [flattened(model(image[None])) for image in images]
            expected = [flattened(taps, index) for index in range(batch)]
            torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-4)
        if model.training and case % 4 == 0 and any(p.requires_grad for p in model.parameters()):
            outputs = [t for tap in taps for t in (tap if isinstance(tap, tuple) else (tap,))]
            loss = sum(tensor.square().sum() for tensor in outputs)
            if loss.requires_grad:
                loss.backward()
                grads = [p.grad for p in model.parameters() if p.grad is not None]
                assert all(grad.isfinite().all() for grad in grads), (case, options)
