"""Weights against a model: every misfit in one sentence, whatever the file holds."""

import pytest
import torch
from torch import nn

from mmvim.checkpoints import load_start, load_strictly, to_official
from mmvim.errors import UserError
from mmvim.models import VisionMamba

ARCH = dict(embed_dims=16, num_layers=2, d_state=4)
VIT = ['cls_token', 'patch_embed.proj.weight', 'blocks.0.attn.qkv.weight', 'head.weight']
RESNET = ['conv1.weight', 'layer1.0.conv1.weight', 'fc.weight']


class Dense(nn.Module):
    """A whole model, as all libraries build them."""

    def __init__(self, classes=5, **options):
        super().__init__()
        self.backbone = VisionMamba(ARCH, img_size=64, **options)
        self.decode_head = nn.Sequential(nn.Linear(16, classes), nn.Linear(4, 4), nn.Linear(4, 4))


def drawn(model):
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn_like(param))
    return model


def same(one, other):
    other = dict(other.named_parameters())
    return all(torch.equal(value, other[key]) for key, value in one.named_parameters())


@pytest.mark.parametrize('cls_token', ['middle', 'head', 'none', 'double'])
@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_a_training_starts_from_a_published_file(cls_token, prefix, lines):
    """Its class token is where the model has it; a model without one leaves it."""
    source, target = drawn(Dense(cls_token=cls_token)), Dense(cls_token=cls_token)
    weights = to_official(source.backbone.state_dict(), cls_token)
    weights = {prefix + key: value for key, value in weights.items()}
    held = dict(model=weights | {'head.weight': torch.ones(7, 16)}, epoch=1)
    load_start(target, held, 'a.pth')
    assert same(target.backbone, source.backbone)
    assert f'a.pth: converted from the published keys, class token {cls_token}.' in lines
    assert any('left at their initial values: decode_head.* (6 tensors)' in line for line in lines)
    assert any('not used by this model: head.weight' in line for line in lines)
    dense = Dense(cls_token='none', out_norm='none')
    state = load_start(dense, dict(held, meta=dict(cls_token=cls_token)), 'a.pth')
    assert state.keys() == dense.state_dict().keys()
    assert same(dense.backbone, source.backbone)
    if cls_token != 'none':
        assert any(
            'not used by its backbone: cls_token, cls_pos_embed, norm_f' in line for line in lines
        )


def test_blocks_that_are_not_built_are_left_and_named(lines):
    source, target = drawn(Dense()), Dense(out_indices=0)
    load_start(target, source.state_dict(), 'a.pth')
    assert same(target.backbone, source.backbone)
    assert any('not used by its backbone: layers.* (' in line for line in lines)
    load_strictly(target, source.state_dict(), 'a.pth')  # such as the model of an older version


def test_a_head_of_other_classes_is_left_and_named(lines):
    source, target = drawn(Dense()), Dense(classes=3)
    before = target.decode_head[0].weight.clone()
    state = load_start(target, source.state_dict(), 'a.pth')
    assert same(target.backbone, source.backbone)
    assert torch.equal(state['decode_head.0.weight'], before)
    assert same(target.decode_head[1], source.decode_head[1])
    assert any(
        line == 'a.pth: of another shape, left at their initial values: decode_head.0.weight, '
        'decode_head.0.bias.'
        for line in lines
    )


@pytest.mark.parametrize('load', [load_start, load_strictly])
@pytest.mark.parametrize(
    'keys, named',
    [
        (VIT, 'no Vim checkpoint: its keys are those of DeiT, MAE'),
        (RESNET, 'not one tensor of its backbone is in the file, whose keys are those of ResNet'),
        (['hidden.weight'], 'whose keys are backbone.hidden.weight …'),
        (['decode_head.0.bias'], 'whose keys are decode_head.0.bias …'),
    ],
)
def test_another_architecture_is_refused_by_name(load, keys, named):
    with pytest.raises(UserError) as caught:
        load(Dense(), dict.fromkeys(keys, torch.ones(5)), 'a.pth')
    assert str(caught.value).startswith('a.pth') and named in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize('change', ['missing', 'unexpected', 'shape', 'all shapes'])
def test_a_backbone_in_part_is_refused(change):
    state = Dense().state_dict()
    if change == 'missing':
        del state['backbone.layers.1.mixer.D']
    elif change == 'unexpected':
        state['backbone.layers.2.mixer.D'] = torch.ones(3)
    elif change == 'shape':
        state['backbone.layers.1.mixer.D'] = torch.ones(3)
    else:
        state = {key: torch.ones(1, 1, 1) for key in state if 'pos_embed' not in key}
    with pytest.raises(UserError, match=r'a\.pth does not fit .*layers\.|not one tensor'):
        load_start(Dense(), state, 'a.pth')


def test_a_model_that_is_no_vim_starts_from_what_there_is(lines):
    source, target = drawn(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))), nn.Linear(2, 2)
    load_start(target, {f'0.{k}': v for k, v in source[0].state_dict().items()}, 'a.pth')
    assert same(target, source[0])
    assert lines[-1] == 'Loaded 2 of 2 tensors of the Linear from a.pth.'
    load_start(target, dict(weight=torch.ones(2, 2)), 'a.pth')
    assert lines[-1] == 'a.pth: left at their initial values: bias.'


def test_mmengines_loaders_do_not_take_published_files_for_ours():
    """A Pretrained initialisation, and load_from of a whole model by another library's tool."""
    from mmengine.runner.checkpoint import load_state_dict

    published = to_official(VisionMamba(ARCH, img_size=64).state_dict())
    with pytest.raises(ValueError, match=r'a key of the published code.*mmvim\.PretrainedVim'):
        load_state_dict(VisionMamba(ARCH, img_size=64), published)
    with pytest.raises(ValueError, match=r'backbone\.patch_embed\.proj\.weight is a key of'):
        load_state_dict(Dense(), {f'backbone.{k}': v for k, v in published.items()})


@pytest.mark.parametrize(
    'key, value, says',
    [
        (7, torch.ones(1), 'the key 7 of its weights is no name'),
        ('norm_f.weight', torch.ones(16).to_sparse(), 'norm_f.weight is no dense tensor'),
        ('norm_f.weight', torch.ones(16, device='meta'), 'norm_f.weight is a tensor without'),
        ('pos_embed', 'rows', 'pos_embed is of type str, and no tensor'),
        ('pos_embed', torch.tensor(3.0), 'pos_embed'),
        ('pos_embed', torch.ones(16, 16), 'pos_embed'),
        ('pos_embed_grid', torch.tensor([3, 5]), 'pos_embed_grid'),
        ('pos_embed_grid', torch.tensor(4), 'pos_embed_grid'),
        ('pos_embed_grid', torch.ones(3), 'pos_embed_grid'),
    ],
)
def test_spoilt_weights_are_one_sentence(key, value, says):
    model = VisionMamba(ARCH, img_size=64)
    with pytest.raises(UserError) as caught:
        load_strictly(model, dict(state_dict={**model.state_dict(), key: value}), 'a.pth')
    assert str(caught.value).startswith('a.pth ') and says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_all_kinds_of_misfit_are_said_at_once():
    """Those that torch raises for, and those that it does not."""
    model = VisionMamba(ARCH, img_size=64)
    state = model.state_dict()
    del state['layers.0.mixer.D'], state['norm_f.weight']
    state |= {'extra': torch.ones(1), 'layers.1.mixer.D': torch.ones(3)}
    with pytest.raises(UserError) as caught:
        load_strictly(model, dict(state_dict=state), 'a.pth')
    assert str(caught.value) == (
        'a.pth does not fit the VisionMamba of this config: 2 keys missing (layers.0.mixer.D, '
        'norm_f.weight); 1 key unexpected (extra); 1 key of another shape (layers.1.mixer.D: (3) '
        'in the file, (32) in the model); use the config it was trained with'
    )


def test_a_position_embedding_of_another_grid_is_no_misfit():
    model, other = VisionMamba(ARCH, img_size=64), VisionMamba(ARCH, img_size=96)
    load_strictly(model, other.state_dict(), 'a.pth')
    state = other.state_dict() | {'layers.1.mixer.D': torch.ones(3)}
    with pytest.raises(UserError, match=r': 1 key of another shape \(layers\.1\.mixer\.D: '):
        load_strictly(model, dict(state_dict=state), 'a.pth')


def test_what_a_module_keeps_beside_tensors_is_loaded():
    class Counting(nn.Linear):
        count = 0

        def get_extra_state(self):
            return dict(count=self.count)

        def set_extra_state(self, state):
            self.count = state['count']

    source, target = Counting(1, 1), Counting(1, 1)
    source.count = 3
    load_strictly(target, source.state_dict(), 'a.pth')
    assert target.count == 3


def test_errors_of_other_libraries_are_passed_on():
    class Refusing(nn.Linear):
        def _load_from_state_dict(self, *args):
            args[-1].append('not on a Sunday')

    with pytest.raises(UserError, match=r'a\.pth does not fit the Refusing.*not on a Sunday'):
        load_strictly(Refusing(1, 1), nn.Linear(1, 1).state_dict(), 'a.pth')
