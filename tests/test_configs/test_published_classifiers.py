"""Classifiers of the configs against what the published code computes, in float64."""

import math

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from repository import load_config
from safetensors.torch import load_file

pytest.importorskip('mmpretrain')

from mmvim.checkpoints import convert_official

TINY = 'vim-tiny_8xb128-300e_in1k'
ABLATION = 'vim-tiny-{}_8xb128-300e_in1k'


def load(name):
    return load_config(f'vim/{name}.py')


@pytest.fixture(autouse=True)
def in_mmpretrain():
    """The scope that a runner would leave behind ends with the test."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


# Golden of the published code -> config whose classifier it is.
GOLDENS = {
    'main': TINY,
    'head_cls': ABLATION.format('head-token'),
    'mean_nocls': ABLATION.format('mean-pool'),
    'none': TINY,
    'v1': TINY,
}


@pytest.mark.parametrize('golden', GOLDENS)
def test_logits_are_the_published_ones(golden, goldens):
    """Through the whole classifier in float64, from published weights."""
    folder = goldens / 'cls'
    cfg = load(GOLDENS[golden])
    direction = {'none': 'none', 'v1': 'ssm'}.get(golden, 'ssm_conv')
    cfg.model.backbone.update(
        arch=dict(embed_dims=64, num_layers=4), img_size=64, direction=direction
    )
    cfg.model.head.update(in_channels=64, num_classes=10)
    model = MODELS.build(cfg.model).double().eval()
    weights = published_weights(folder, golden, model)
    model.load_state_dict(weights, strict=True)
    with np.load(folder / f'{golden}.npz') as file:
        image, expected = (torch.from_numpy(file[key]).double() for key in ('x', 'logits'))
    with torch.no_grad():
        logits = model(image, mode='tensor')
        (first, _) = model(image, mode='predict')
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
    assert first.pred_label == expected[0].argmax()
    torch.testing.assert_close(first.pred_score, expected[0].softmax(0), rtol=0, atol=1e-10)


def published_weights(folder, golden, model):
    """Weights of a golden under the keys of ``model``, without what its variant does not have."""
    weights = load_file(folder / 'main.weights.safetensors')
    extra = folder / f'{golden}.extra.safetensors'
    if extra.exists():
        weights.update(load_file(extra))
    cls_token = model.backbone.cls_token_type
    if cls_token == 'none':
        weights.pop('cls_token')
    official = convert_official(weights, cls_token)
    ours = {f'backbone.{key}': value for key, value in official.items()}
    ours |= {f'head.fc.{key}': official.extras[f'head.{key}'] for key in ('weight', 'bias')}
    ours['backbone.pos_embed_grid'] = model.backbone.pos_embed_grid
    return {key: ours[key] for key in model.state_dict()}


def test_max_pool_is_the_published_one(goldens):
    """The head over every token of the published final norm, the greatest score of each class."""
    folder = goldens / 'cls'
    cfg = load(ABLATION.format('max-pool'))
    cfg.model.backbone.update(arch=dict(embed_dims=64, num_layers=4), img_size=64)
    cfg.model.head.update(in_channels=64, num_classes=10)
    model = MODELS.build(cfg.model).double().eval()
    weights = published_weights(folder, 'mean_nocls', model)
    model.load_state_dict(weights, strict=True)
    with np.load(folder / 'mean_nocls.npz') as file:
        image, tokens = file['x'], file['norm_f_out'].astype(np.float64)
    matrix, bias = (weights[f'head.fc.{key}'].double().numpy() for key in ('weight', 'bias'))
    expected = np.max(np.einsum('bld,kd->blk', tokens, matrix) + bias, axis=1)
    with torch.no_grad():
        logits = model(torch.from_numpy(image).double(), mode='tensor')
    torch.testing.assert_close(logits, torch.from_numpy(expected), rtol=0, atol=1e-10)


def test_double_token_reads_the_mean_of_first_and_last(tmp_path):
    cfg = load(ABLATION.format('double-token'))
    cfg.model.backbone.update(arch=dict(embed_dims=32, num_layers=2), img_size=64)
    cfg.model.head.update(in_channels=32, num_classes=5)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).double().eval()
    image = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        logits = model(image, mode='tensor')
        model.backbone.out_type = 'raw'
        (tokens,) = model.backbone(image)  # (B, 1 + 16 + 1, D)
        expected = model.head.fc((tokens[:, 0] + tokens[:, -1]) / 2)
    assert tokens.shape[1] == 18
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    'size, index', [((64, 64), 8), ((80, 80), 12), ((48, 80), 7), ((16, 16), 0)]
)
def test_place_of_the_middle_token(size, index):
    """Half the patches come before it, on even and odd grids; found by what a token is."""
    cfg = load(TINY)
    cfg.model.backbone.update(arch=dict(embed_dims=32, num_layers=1), img_size=size)
    backbone = MODELS.build(cfg.model).backbone
    grid = (size[0] // 16, size[1] // 16)
    assert index == math.prod(grid) // 2
    with torch.no_grad():
        backbone.cls_token.fill_(100.0)
        tokens, found = backbone._embed(torch.rand(1, 3, *size))
    assert found == grid
    assert tokens.shape[1] == math.prod(grid) + 1
    assert (tokens[0].mean(dim=1) > 50).nonzero().flatten().tolist() == [index]
