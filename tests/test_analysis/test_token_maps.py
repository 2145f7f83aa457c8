"""Maps of single tokens, and taps of backbones whose config gives something else."""

import pytest
import torch
from torch import nn

from mmvim.analysis.backbone_maps import feature_maps, tap_indices
from mmvim.analysis.model_views import (
    NotApplicableError,
    class_responses,
    position_similarity,
    token_strengths,
)
from mmvim.errors import UserError
from mmvim.models import VisionMamba

ARCH = dict(embed_dims=16, num_layers=4, d_state=4)


def build(**options):
    torch.manual_seed(0)
    return VisionMamba(ARCH, img_size=64, **options).eval()


class Maps(nn.Module):
    """A backbone that gives what it is given."""

    def forward(self, x):
        return x


def test_strength_is_the_norm_over_channels():
    maps = torch.zeros(1, 2, 1, 2)
    maps[0, :, 0, 1] = torch.tensor([3.0, -4.0])
    assert token_strengths(Maps(), maps, ())['output 0'].tolist() == [[0.0, 5.0]]


def test_responses_average_to_the_classifier_under_mean_pooling():
    torch.manual_seed(0)
    model = nn.Module()
    model.backbone, model.head = Maps(), nn.Linear(6, 5).double()
    model.head.fc = linear = model.head
    model.extract_feat = lambda x: x.mean(dim=(2, 3))
    maps = torch.randn(1, 6, 3, 4, dtype=torch.float64)
    found = class_responses(model, maps, 5)
    expected = linear(maps.mean(dim=(2, 3)))[0]
    assert list(found) == expected.argsort(descending=True).tolist()
    for number, response in found.items():
        torch.testing.assert_close(response.mean(), expected[number], rtol=0, atol=1e-12)
        torch.testing.assert_close(
            response[2, 3], linear(maps[0, :, 2, 3])[number], rtol=0, atol=1e-12
        )


def test_similarity_of_positions():
    """Rows that depend on the column alone: equal along a column, orthogonal elsewhere."""
    model = Maps()
    model.pos_embed = 3 * torch.eye(3)[None, :, :].expand(2, -1, -1).reshape(1, 6, 3)
    model.grid_size = (2, 3)
    similarity = position_similarity(model)
    assert similarity.shape == (2, 3, 2, 3)
    for column in range(3):
        expected = torch.zeros(2, 3)
        expected[:, column] = 1
        assert torch.equal(similarity[0, column], expected)
    model.grid_size = None
    with pytest.raises(NotApplicableError, match='Maps has no position embedding for a grid'):
        position_similarity(model)


@pytest.mark.parametrize('cls_token, out_type', [('middle', 'cls_token'), ('none', 'avg_featmap')])
@pytest.mark.parametrize('out_norm', ['none', 'last'])
def test_maps_of_a_classifier_are_those_of_a_dense_model(cls_token, out_type, out_norm):
    classifier = build(cls_token=cls_token, out_type=out_type, out_norm=out_norm)
    x = torch.rand(2, 3, 48, 80)
    with torch.no_grad():
        before = classifier(x)[0]
        found = feature_maps(classifier, x, (0, 2))
        dense = build(cls_token=cls_token, out_indices=(0, 2, 3), out_norm=out_norm)
        expected = dense(x)
        assert [entry.shape for entry in found] == [(2, 16, 3, 5)] * 2
        assert all(torch.equal(a, b) for a, b in zip(found, expected))
        deepest = feature_maps(classifier, x, (3,))
        assert len(deepest) == 1 and torch.equal(deepest[0], expected[2])
        (last,) = feature_maps(classifier, x)
        assert torch.equal(last, expected[2])
        assert torch.equal(classifier(x)[0], before)
    assert (classifier.out_type, classifier.out_indices) == (out_type, (3,))


def test_everything_is_put_back_after_an_error():
    model = build(out_type='cls_token')
    seen = []

    def fail(module, args):
        seen.append((module.out_type, module.out_indices))
        raise RuntimeError

    model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError):
        feature_maps(model, torch.rand(1, 3, 64, 64), (1,))
    assert seen == [('featmap', (1, 3))]
    assert (model.out_type, model.out_indices) == ('cls_token', (3,))


def test_pairs_of_map_and_class_token():
    model = build(out_type='featmap_cls', out_indices=(1, 3))
    assert tap_indices(model) == (1, 3)
    maps = feature_maps(model, torch.rand(1, 3, 64, 64), (1, 3))
    assert [entry.shape for entry in maps] == [(1, 16, 4, 4)] * 2


def test_which_blocks():
    assert tap_indices(build()) == (0, 1, 2, 3)
    assert tap_indices(build(out_indices=(2, 0))) == (0, 2)
    assert tap_indices(build(), [-1, 1]) == (1, 3)
    assert tap_indices(VisionMamba('tiny')) == (5, 11, 17, 23)
    assert tap_indices(VisionMamba('tiny', out_indices=7)) == (1, 3, 5, 7)
    with pytest.raises(UserError, match=r'-8 … 7'):  # deeper blocks never run
        tap_indices(VisionMamba('tiny', out_indices=7), [8])
    assert tap_indices(build(direction='block_published')) == (1, 3)
    with pytest.raises(UserError, match=r'-4 … 3 .*4 blocks.*\[4\]'):
        tap_indices(build(), [4])
    with pytest.raises(UserError, match='odd indices'):
        tap_indices(build(direction='block_published'), [2])


def test_other_backbones():
    """Anything that gives maps; what gives none is refused."""

    class Plain(nn.Module):
        def __init__(self, ndim):
            super().__init__()
            self.ndim = ndim

        def forward(self, x):
            return x if self.ndim == 4 else x.flatten(1)

    x = torch.rand(1, 3, 4, 4)
    assert tap_indices(Plain(4)) == ()
    assert torch.equal(feature_maps(Plain(4), x, ())[0], x)
    with pytest.raises(UserError, match='Plain gives no feature maps'):
        feature_maps(Plain(2), x, ())
    with pytest.raises(UserError, match='Plain has no out_indices'):
        tap_indices(Plain(4), [1])


@pytest.mark.parametrize('indices', [(0, 1), (1,)])
def test_mmpretrains_vit(indices):
    backbones = pytest.importorskip('mmpretrain.models.backbones')
    arch = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=16)
    model = backbones.VisionTransformer(arch, img_size=32, out_type='cls_token')
    model.eval()  # its train() returns nothing
    assert tap_indices(model) == (0, 1)
    maps = feature_maps(model, torch.rand(1, 3, 32, 48), indices)
    assert [entry.shape for entry in maps] == [(1, 16, 2, 3)] * len(indices)


@pytest.mark.parametrize(
    'name', ['norm_f', 'layers.3.norm', 'layers.3.mixer', 'layers.1.mixer.out_proj']
)
def test_layers_that_grad_cam_can_look_at(name):
    """They give one tensor of tokens, (B, L, D), with a gradient of its own."""
    model = build(cls_token='none', out_type='avg_featmap')
    seen = {}

    def note(module, args, output):
        output.retain_grad()
        seen['tokens'] = output

    model.get_submodule(name).register_forward_hook(note)
    model(torch.rand(2, 3, 64, 48))[0][:, 0].sum().backward()
    assert seen['tokens'].shape == (2, 4 * 3, 16)
    assert seen['tokens'].grad.abs().sum() > 0
