"""Key mapping of published checkpoints, both ways."""

import pytest
import torch

from mmvim.checkpoints import BackboneWeights, convert_official, to_official
from mmvim.models import VisionMamba

ARCH = dict(embed_dims=16, num_layers=2, d_state=4)
COUNT = {'none': 0, 'head': 1, 'middle': 1, 'double': 2}


def published(cls_token, patches=16, dims=16):
    """A state dict under published keys whose position embedding counts its rows."""
    torch.manual_seed(0)
    model = VisionMamba(ARCH, img_size=64, cls_token=cls_token)
    weights = to_official(model.state_dict(), cls_token)
    rows = patches + COUNT[cls_token]
    weights['pos_embed'] = torch.arange(float(rows)).reshape(1, rows, 1).expand(1, rows, dims)
    weights['head.weight'], weights['head.bias'] = torch.randn(5, dims), torch.randn(5)
    weights['rope.freqs_cos'] = torch.ones(16, 16)
    return weights


@pytest.mark.parametrize('cls_token', COUNT)
def test_round_trip_is_bit_for_bit(cls_token):
    weights = published(cls_token)
    official = convert_official(weights, cls_token)
    back = to_official(official, cls_token)
    assert back.keys() == weights.keys()
    for key, value in weights.items():
        assert torch.equal(back[key], value) and back[key].dtype == value.dtype, key


@pytest.mark.parametrize('cls_token', COUNT)
def test_loads_strictly_and_through_the_model_and_back(cls_token):
    weights = published(cls_token)
    official = convert_official({'model': weights, 'epoch': 3}, cls_token)
    model = VisionMamba(ARCH, img_size=64, cls_token=cls_token)
    model.load_state_dict(official, strict=True)
    back = to_official(model.state_dict(), cls_token) | official.extras
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], value) for key, value in weights.items())


@pytest.mark.parametrize(
    'arch, stride, rows, keys',
    [
        ('tiny', 16, 197, 415),
        ('small', 16, 197, 415),
        ('base', 16, 197, 415),
        ('tiny', 8, 730, 415),
    ],
)
def test_released_sizes_through_the_model_and_back(arch, stride, rows, keys):
    """Every tensor of a published file, drawn at random, comes back bit for bit."""
    torch.manual_seed(0)
    model = VisionMamba(arch, patch_stride=stride)
    names = to_official(model.state_dict())
    weights = {key: torch.randn_like(value) for key, value in names.items()}
    weights['head.weight'] = torch.randn(1000, model.embed_dims)
    weights['head.bias'] = torch.randn(1000)
    assert len(weights) == keys and weights['pos_embed'].shape[1] == rows
    official = convert_official({'model': weights})
    model.load_state_dict(official, strict=True)
    back = to_official(model.state_dict()) | official.extras
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], value) for key, value in weights.items())


@pytest.mark.parametrize(
    'cls_token, rows', [('head', [0]), ('middle', [8]), ('double', [0, 17]), ('none', [])]
)
def test_class_rows_are_taken_from_where_they_are(cls_token, rows):
    official = convert_official(published(cls_token), cls_token)
    total = 16 + COUNT[cls_token]
    kept = [row for row in range(total) if row not in rows]
    assert official['pos_embed'][0, :, 0].tolist() == kept
    if rows:
        assert official['cls_pos_embed'][0, :, 0].tolist() == rows
        assert official['cls_token'].shape == (1, len(rows), 16)


def test_the_classifier_is_kept_apart():
    official = convert_official(published('middle'))
    assert isinstance(official, BackboneWeights)
    assert set(official.extras) == {'head.weight', 'head.bias', 'rope.freqs_cos'}
    assert not any(key.startswith(('head', 'rope')) for key in official)


@pytest.mark.parametrize(
    'given, declared', [('middle', 'none'), ('none', 'middle'), ('double', 'head')]
)
def test_the_declared_placement_must_fit(given, declared):
    with pytest.raises(ValueError, match=f'cls_token={declared!r}'):
        convert_official(published(given), declared)
    model = VisionMamba(ARCH, cls_token=given)
    with pytest.raises(ValueError, match=f'cls_token={declared!r}'):
        to_official(model.state_dict(), declared)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"cls_token must be one of .*'middle'.*'tail'"):
        convert_official({}, 'tail')
    strange = {'blocks.0.weight': torch.zeros(1), 'cls_token': torch.zeros(1, 1, 4)}
    with pytest.raises(ValueError, match=r'blocks\.0\.weight'):
        convert_official(strange)
    with pytest.raises(ValueError, match='tap_norms'):
        to_official(VisionMamba(ARCH, out_indices=(0, 1), out_norm='all').state_dict())
