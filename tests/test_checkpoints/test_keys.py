"""Files whose weights lie behind prefixes, under other entries, or several times."""

import itertools

import pytest
import torch
from torch import nn

from mmvim.checkpoints import convert_official, load_strictly, read_weights, to_official
from mmvim.checkpoints.conversion import ours_to_published, published_to_ours
from mmvim.checkpoints.keys import choose_copy, plain_key, prefixes
from mmvim.checkpoints.reading import read_checkpoint
from mmvim.errors import UserError
from mmvim.models import VisionMamba

ARCH = dict(embed_dims=16, num_layers=2, d_state=4)
PREFIXES = (
    '_orig_mod.',
    'module.',
    'model.backbone.',
    'backbone.',
    'teacher.',
    'student.backbone.',
    'ema.',
    'model_ema.module.',
    'module._orig_mod.',
    '_orig_mod.module.backbone.',
    'model.backbone._orig_mod.',
    'teacher.module.backbone._fsdp_wrapped_module.',
)


def model_of(**options):
    torch.manual_seed(0)
    model = VisionMamba(ARCH, img_size=64, **options)
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.02 * torch.randn_like(param))
    return model


def same(model, source):
    own = source.state_dict()
    return all(torch.equal(value, own[key]) for key, value in model.state_dict().items())


def started(path):
    model = VisionMamba(
        ARCH, img_size=64, init_cfg=dict(type='mmvim.PretrainedVim', checkpoint=str(path))
    )
    model.init_weights()
    return model


class Dense(nn.Module):
    """A whole model with a head, as all libraries build them."""

    def __init__(self):
        super().__init__()
        self.backbone = VisionMamba(ARCH, img_size=64)
        self.head = nn.Linear(16, 5)


@pytest.mark.parametrize('prefix', PREFIXES)
@pytest.mark.parametrize('published', [True, False])
def test_every_loader_finds_the_backbone(tmp_path, prefix, published):
    source = model_of()
    own = source.state_dict()
    weights = {prefix + k: v for k, v in (to_official(own) if published else own).items()}
    torch.save(dict(state_dict=weights), tmp_path / 'a.pth')
    assert same(started(tmp_path / 'a.pth'), source)
    target = VisionMamba(ARCH, img_size=64)
    load_strictly(target, read_checkpoint(str(tmp_path / 'a.pth')), 'a.pth')
    assert same(target, source)
    convert = published_to_ours if published else ours_to_published
    converted = convert(read_weights(str(tmp_path / 'a.pth')), 'middle', head=False).weights
    expected = own if published else to_official(own)
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[key], value) for key, value in expected.items())
    converted = (convert_official if published else to_official)(weights)
    assert converted.keys() == expected.keys() - {'pos_embed_grid'}
    assert all(torch.equal(value, expected[key]) for key, value in converted.items())


@pytest.mark.parametrize('prefix', ['', '_orig_mod.', 'module.', 'model.', 'ema_model.module.'])
@pytest.mark.parametrize('published', [True, False])
def test_a_whole_model_behind_a_prefix(prefix, published):
    source, target = Dense(), Dense()
    nn.init.normal_(source.head.weight)
    weights = source.state_dict()
    if published:
        weights = {
            (f'backbone.{key}'): value
            for key, value in to_official(source.backbone.state_dict()).items()
        } | {key: value for key, value in weights.items() if key.startswith('head.')}
    load_strictly(target, {prefix + key: value for key, value in weights.items()}, 'a.pth')
    assert same(target, source)


def test_any_model_behind_a_prefix_and_a_compiled_part():
    source, target = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))
    state = {f'teacher.module.{key}': value for key, value in source.state_dict().items()}
    load_strictly(target, state, 'a.pth')
    assert same(target, source)
    compiled = nn.Sequential(torch.compile(nn.Linear(2, 2)))
    assert '0._orig_mod.weight' in compiled.state_dict()
    load_strictly(compiled, state, 'a.pth')
    assert torch.equal(compiled[0].weight, source[0].weight)


def test_an_average_beside_the_weights_gives_way_and_a_teacher_asks(tmp_path, monkeypatch):
    first, other = model_of(), VisionMamba(ARCH, img_size=64)
    one, two = to_official(first.state_dict()), to_official(other.state_dict())
    path = tmp_path / 'a.pth'
    for held in (
        dict(model=one, model_ema=two),
        dict(weights=one, ema=two),
        {f'{name}.{k}': v for name, w in (('net', one), ('ema', two)) for k, v in w.items()},
    ):
        torch.save(held, path)
        assert same(started(path), first)
        average = next(name for name in ('model_ema', 'ema') if any(name in key for key in held))
        assert same(started(f'{path}#{average}'), other)
    for i, held in enumerate(
        (
            dict(teacher=one, student={f'module.backbone.{k}': v for k, v in two.items()}),
            {f'{n}.{k}': v for n, w in (('teacher', one), ('student', two)) for k, v in w.items()},
        )
    ):
        torch.save(held, path)
        monkeypatch.setenv('TORCH_HOME', str(tmp_path / f'hub{i}'))
        with pytest.raises(
            UserError, match=r'a\.pth(: it)? holds 2 models, under .*teacher.* #\w+$'
        ):
            started(path)
        for name, source in (('teacher', first), ('student', other)):
            assert same(started(f'{path}#{name}'), source)
            assert same(started(f'{path.as_uri()}#{name}'), source)
            target = VisionMamba(ARCH, img_size=64)
            load_strictly(target, read_checkpoint(f'{path}#{name}'), 'a.pth')
            assert same(target, source)
        with pytest.raises(UserError, match=r"nothing under 'ema'|holds 2 models"):
            started(f'{path}#ema')
    with pytest.raises(UserError, match=r'holds 2 models, under teacher\.backbone, student'):
        parts = itertools.product(('teacher', 'student'), other.state_dict().items())
        weights = {f'{name}.backbone.{key}': value for name, (key, value) in parts}
        load_strictly(Dense(), weights, 'a.pth')


def test_names_alone():
    assert plain_key('module.module._orig_mod.a.module.b') == 'a.module.b'
    assert plain_key('module') == 'module'
    assert choose_copy(['ema'], 'a') == 'ema'
    assert choose_copy(['schema', 'state_dict_ema'], 'a') == 'schema'
    with pytest.raises(UserError, match='ema, model_ema'):
        choose_copy(['ema', 'model_ema'], 'a')
    assert prefixes(['a.b.w', 'w', 'x.vw', 'x.w.y'], ['w']) == ['', 'a.b.']


def test_one_key_twice_is_refused(tmp_path):
    torch.save({'module.a': torch.ones(1), 'a': torch.ones(1)}, tmp_path / 'a.pth')
    with pytest.raises(UserError, match='it has a key twice'):
        read_weights(str(tmp_path / 'a.pth'))


def test_a_dict_that_holds_itself_is_no_checkpoint(tmp_path):
    held = {}
    held['model'] = held
    torch.save(held, tmp_path / 'a.pth')
    with pytest.raises(UserError, match='no weights'):
        read_weights(str(tmp_path / 'a.pth'))
