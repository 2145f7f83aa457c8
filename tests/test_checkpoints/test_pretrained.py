"""Starting from published and converted files, from disk and by URL; loud failures."""

import os
import re

import pytest
import torch
from safetensors.torch import save_file

from mmvim.checkpoints import convert_official, read_weights, to_official
from mmvim.checkpoints.patch_embed import fit_patch_embed
from mmvim.errors import UserError
from mmvim.models import VisionMamba

ARCH = dict(embed_dims=16, num_layers=2, d_state=4)


def model_of(**options):
    options = {'img_size': 64, **options}
    return VisionMamba(ARCH, **options)


@pytest.fixture
def published(tmp_path):
    """A published file: weights under 'model', with a head and rope tables."""
    torch.manual_seed(0)
    source = model_of()
    weights = {key: value.clone() for key, value in to_official(source.state_dict()).items()}
    weights['head.weight'], weights['head.bias'] = torch.randn(5, 16), torch.randn(5)
    weights['rope.freqs_cos'] = torch.ones(16, 16)
    torch.save({'model': weights, 'epoch': 299}, tmp_path / 'vim.pth')
    return tmp_path / 'vim.pth', weights, source


def load(checkpoint, **options):
    init = {'type': 'mmvim.PretrainedVim', 'checkpoint': str(checkpoint)}
    names = ('allow_missing', 'allow_unexpected', 'patch_embed')
    init |= {key: options.pop(key) for key in names if key in options}
    if 'declared' in options:
        init['cls_token'] = options.pop('declared')
    model = model_of(**options, init_cfg=init)
    model.init_weights()
    return model


def same(model, source):
    own = dict(source.named_parameters())
    return all(torch.equal(param, own[name]) for name, param in model.named_parameters())


def test_published_file(published, lines):
    path, _, source = published
    assert same(load(path), source)
    assert any('head.weight, head.bias, rope.freqs_cos' in line for line in lines)


def test_dense_model_drops_class_token_and_norm_and_says_so(published, lines):
    path, weights, _ = published
    model = load(path, cls_token='none', out_norm='none', out_indices=(0, 1), img_size=(32, 96))
    rows = convert_official(weights)['pos_embed']
    from mmvim.models.pos_embed import resize_pos_embed

    expected = resize_pos_embed(rows, (4, 4), (2, 6))
    torch.testing.assert_close(model.pos_embed.data, expected, rtol=0, atol=0)
    said = next(line for line in lines if 'not used by this backbone' in line)
    assert all(key in said for key in ('cls_token', 'cls_pos_embed', 'norm_f.weight'))
    assert any('Resize pos_embed' in line for line in lines)


@pytest.mark.parametrize('how', ['mean', 'repeat', None])
@pytest.mark.parametrize(
    'shape, says',
    [
        ((16, 3, 0, 0), r'of another shape \(patch_embed\.projection'),
        ((16,), r'of another shape \(patch_embed\.projection'),
        ((8, 1, 8, 8), r"of another shape \(patch_embed\.projection|'skip' leaves"),
    ],
)
def test_what_is_no_patch_embedding_is_a_misfit(published, how, shape, says):
    path, weights, _ = published
    weights['patch_embed.proj.weight'] = torch.ones(shape)
    torch.save({'model': weights}, path)
    with pytest.raises(UserError, match=says):
        load(path, patch_embed=how)


def test_blocks_that_are_not_built_are_left_out_and_named(published, lines):
    path, _, source = published
    model = load(path, out_indices=0)
    assert len(model.layers) == 1
    assert torch.equal(model.layers[0].mixer.D, source.layers[0].mixer.D)
    assert any('not used by this backbone: layers.* (' in line for line in lines)


@pytest.mark.parametrize(
    'form', ['pth', 'safetensors', 'published_safetensors', 'whole_model', 'url']
)
def test_other_files(published, tmp_path, form, monkeypatch):
    path, weights, source = published
    ours = dict(convert_official(weights))
    target = tmp_path / f'file.{"safetensors" if "safetensors" in form else "pth"}'
    if form == 'pth':
        torch.save(ours, target)
    elif form == 'safetensors':
        save_file({key: value.contiguous() for key, value in ours.items()}, target)
    elif form == 'published_safetensors':
        save_file({key: value.contiguous() for key, value in weights.items()}, target)
    elif form == 'whole_model':
        state = {f'backbone.{key}': value for key, value in source.state_dict().items()}
        torch.save({'state_dict': state | {'decode_head.w': torch.ones(1)}, 'meta': {}}, target)
    else:
        monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'hub'))
        target = path.as_uri()
    assert same(load(target), source)


def test_of_a_whole_model_few_keys_are_named_and_many_counted(published, tmp_path, lines):
    _, _, source = published
    state = {f'backbone.{key}': value for key, value in source.state_dict().items()}
    others = ('neck.w', *(f'decode_head.convs.{i}.w' for i in range(9)))
    torch.save({'state_dict': state | dict.fromkeys(others, torch.ones(1))}, tmp_path / 'model.pth')
    assert same(load(tmp_path / 'model.pth'), source)
    said = next(line for line in lines if 'no part of the backbone' in line)
    assert said.endswith('no part of the backbone: neck.w, decode_head.* (9 tensors).')


def test_two_urls_of_the_same_name_stay_apart(published, tmp_path, monkeypatch):
    path, weights, source = published
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'hub'))
    other = tmp_path / 'other' / path.name
    other.parent.mkdir()
    torch.save({'model': {key: value + 1 for key, value in weights.items()}}, other)
    assert same(load(path.as_uri()), source)
    assert not same(load(other.as_uri()), source)


def test_placement_is_declared(published):
    path, _, source = published
    with pytest.raises(UserError, match=r"vim\.pth: .*cls_token='none'"):
        load(path, declared='none')
    head = load(path, declared='head')
    assert not same(head, source)  # the file does not tell; the declaration counts


@pytest.mark.parametrize('change', ['missing', 'unexpected', 'shape', 'cls_token'])
def test_what_does_not_fit_is_named(published, tmp_path, change):
    path, weights, _ = published
    options = {}
    if change == 'missing':
        del weights['layers.1.mixer.A_log']
        word = 'layers.1.mixer.A_log'
    elif change == 'unexpected':
        weights['layers.2.norm.weight'] = torch.ones(16)
        word = 'layers.2.norm.weight'
    elif change == 'shape':
        weights['layers.0.mixer.D'] = torch.ones(3)
        word = r'layers\.0\.mixer\.D: \(3\) in the file, \(32\)'
    else:
        options = dict(cls_token='double')
        word = 'cls_token'
    torch.save({'model': weights}, path)
    with pytest.raises(UserError, match=word):
        load(path, **options)


def test_a_grid_that_nothing_tells_is_named(published):
    path, weights, _ = published
    weights['pos_embed'] = torch.zeros(1, 19, 16)  # 18 patches and the class token
    torch.save({'model': weights}, path)
    with pytest.raises(UserError, match=r'vim\.pth does not fit .*18 patch rows.* no square grid'):
        load(path)


def test_exceptions_are_allowed_by_name(published, lines):
    path, weights, source = published
    del weights['layers.1.mixer.A_log']
    weights['layers.2.norm.weight'] = torch.ones(16)
    torch.save({'model': weights}, path)
    model = load(
        path,
        allow_missing=['layers.1.mixer.A_log'],
        allow_unexpected=['layers.2.norm.weight'],
    )
    assert same(model, source)  # A_log starts at the same values everywhere
    assert any('initial values: layers.1.mixer.A_log' in line for line in lines)


def init_log(lines):
    """What mmengine says of every parameter after init_weights."""
    text = '\n'.join(lines)
    found = re.findall(r'^(\S+) - torch\.Size\(\[[\d, ]*\]\): \n(.*?) *$', text, re.MULTILINE)
    return dict(found)


def test_the_log_says_where_every_parameter_came_from(published, lines):
    path, weights, _ = published
    del weights['layers.1.mixer.A_log']
    torch.save({'model': {f'model.backbone.{key}': value for key, value in weights.items()}}, path)
    model = load(path, img_size=(32, 96), allow_missing=['layers.1.mixer.A_log'])
    said = init_log(lines)
    assert said.keys() == dict(model.named_parameters()).keys()
    assert not [line for line in lines if 'same before and after' in line]
    start, key = f'PretrainedVim, {path}: ', 'model.backbone.'
    assert said['patch_embed.projection.bias'] == f'{start}{key}patch_embed.proj.bias'
    assert said['layers.0.mixer.D'] == f'{start}{key}layers.0.mixer.D'
    assert said['pos_embed'] == f'{start}{key}pos_embed: resized from (1, 16, 16)'
    assert said['cls_pos_embed'] == f'{start}{key}pos_embed'
    assert said['layers.1.mixer.A_log'] == f'{start}drawn: not taken from the file'


@pytest.mark.parametrize('how', ['mean', 'repeat'])
@pytest.mark.parametrize('channels, patch', [(1, 16), (4, 16), (12, 8), (3, 32), (3, (8, 16))])
def test_another_patch_embedding_is_adapted_where_asked(published, lines, how, channels, patch):
    path, weights, source = published
    model = load(path, patch_embed=how, in_channels=channels, patch_size=patch)
    kernel = model.patch_embed.projection.weight
    expected, said = fit_patch_embed(weights['patch_embed.proj.weight'], kernel.shape, how)
    assert torch.equal(kernel, expected) and expected.std() > 0
    assert torch.equal(model.patch_embed.projection.bias, source.patch_embed.projection.bias)
    assert any(said in line and 'patch_embed.projection.weight' in line for line in lines)
    text = init_log(lines)['patch_embed.projection.weight']
    assert text.endswith(f'patch_embed.proj.weight: {said}')
    for name, param in model.layers.named_parameters():
        assert torch.equal(param, source.layers.get_parameter(name))


def test_a_grey_image_keeps_its_features(published):
    path, _, source = published
    grey = torch.rand(1, 1, 64, 64)
    model = load(path, patch_embed='mean', in_channels=1)
    with torch.no_grad():
        expected, found = source.eval()(grey.expand(-1, 3, -1, -1)), model.eval()(grey)
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-5)


def test_another_patch_embedding_is_skipped_or_refused(published, lines):
    path, _, source = published
    for options in (dict(in_channels=4), dict(patch_size=8)):
        with pytest.raises(UserError, match=r"vim\.pth has a patch embedding for 3 .*'mean' or"):
            load(path, **options)
        torch.manual_seed(3)
        model = load(path, patch_embed='skip', **options)
        torch.manual_seed(3)
        own = model_of(**options)
        for name in ('weight', 'bias'):
            key = f'patch_embed.projection.{name}'
            assert torch.equal(model.get_parameter(key), own.get_parameter(key))
            assert 'drawn' in init_log(lines)[key]
        assert torch.equal(model.norm_f.weight, source.norm_f.weight)
        assert any('initial values: patch_embed.projection.weight' in line for line in lines)
    assert same(load(path, patch_embed='skip'), source)  # what fits is loaded
    with pytest.raises(ValueError, match=r"patch_embed must be one of .*'mean'.*, got 'sum'"):
        load(path, patch_embed='sum')


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f'touch {self.target}',)


@pytest.mark.parametrize(
    'kind', ['truncated', 'text', 'deit', 'hostile', 'absent', 'cut_safetensors']
)
def test_wrong_files_end_in_one_clear_error(published, tmp_path, kind):
    path, weights, _ = published
    target = tmp_path / 'written'
    if kind == 'truncated':
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == 'text':
        path.write_text('not a checkpoint')
    elif kind == 'deit':
        torch.save({'model': {'blocks.0.attn.qkv.weight': torch.ones(1)}}, path)
    elif kind == 'hostile':
        torch.save({'model': weights, 'x': Hostile(target)}, path)
    elif kind == 'absent':
        path = tmp_path / 'nowhere.pth'
    else:
        path = tmp_path / 'vim.safetensors'
        save_file({key: value.contiguous() for key, value in weights.items()}, path)
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=path.stem) as caught:
        load(path)
    assert len(str(caught.value).splitlines()) == 1
    assert not target.exists()


def test_read_weights_gives_tensors_alone(published):
    path, weights, _ = published
    assert read_weights(str(path)).keys() == weights.keys()
