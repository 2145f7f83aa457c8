"""Published VMamba files of every kind: names, shapes, trainings, dense models, refusals."""

import re
import sys
import types

import pytest
import torch
from torch import nn

from mmvim.checkpoints import (
    PretrainedVim,
    PretrainedVMamba,
    convert_official,
    convert_vmamba,
    load_start,
    load_strictly,
    read_weights,
    to_official,
    to_vmamba,
)
from mmvim.checkpoints.reading import read_checkpoint
from mmvim.errors import UserError
from mmvim.models import VisionMamba, VMamba

pytestmark = pytest.mark.stack
ARCH = dict(dims=8, depths=(1, 1))
V0 = VMamba.arch_zoo['v0_tiny'] | ARCH | dict(d_state=2)
CLASSIFIER = dict(out_indices=1, out_norm='last')
DENSE = dict(out_indices=(0, 1))


def build(arch=ARCH, seed=0, **options):
    """A model without a parameter that equals another."""
    torch.manual_seed(seed)
    model = VMamba(arch, **options)
    for param in model.parameters():
        nn.init.normal_(param)
    return model


def published(arch=ARCH, classes=3, **options):
    """A model, and its weights as the published code saves them."""
    model = build(arch, **options)
    weights = to_vmamba(model.state_dict())
    width = model.dims[-1]
    head = {'weight': torch.randn(classes, width), 'bias': torch.randn(classes)}
    return model, weights | {f'classifier.head.{key}': value for key, value in head.items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def first_release(weights):
    names = {
        r'^patch_embed\.0\.': 'patch_embed.proj.',
        r'^patch_embed\.2\.': 'patch_embed.norm.',
        r'(blocks\.\d+)\.norm\.': r'\1.ln_1.',
        r'\.op\.': '.self_attention.',
        r'^classifier\.': '',
    }
    for old, new in names.items():
        weights = {re.sub(old, new, key): value for key, value in weights.items()}
    return weights


def one_file(weights):
    """Names and shapes of the file at the root of the published code."""
    names = {
        'x_proj_weight': 'x_proj.weight',
        'dt_projs_weight': 'dt_projs.weight',
        'downsample.norm': 'downsample.1',
        'downsample.reduction': 'downsample.2',
    }
    found = {}
    for key, value in weights.items():
        if key.endswith(('x_proj_weight', 'dt_projs_weight')):
            value = value.flatten(0, 1)
        for old, new in names.items():
            key = key.replace(old, new)
        found[key] = value
    return found


def convolutions(weights):
    linear = ('in_proj.weight', 'out_proj.weight', 'fc1.weight', 'fc2.weight', 'head.weight')
    linear += ('reduction.weight', 'downsample.2.weight')
    return {k: v[:, :, None, None] if k.endswith(linear) else v for k, v in weights.items()}


@pytest.mark.parametrize('form', [dict, first_release, one_file, convolutions])
@pytest.mark.parametrize('arch', [ARCH, V0])
def test_every_form_of_the_names_is_read(arch, form):
    model, weights = published(arch, **CLASSIFIER)
    for prefix in ('', 'module.', 'backbone.'):
        converted = convert_vmamba({prefix + k: v for k, v in form(weights).items()})
        assert_same(dict(converted), model.state_dict())
        assert converted.extras.keys() == {'classifier.head.weight', 'classifier.head.bias'}


def test_both_ways_and_back_a_dense_model_is_the_same():
    model, weights = published(dict(ARCH, pos_embed=True), **DENSE)
    assert weights['pos_embed'].shape == (1, 8, 56, 56)
    assert {'outnorm0.weight', 'outnorm1.bias'} <= weights.keys()
    converted = convert_vmamba(weights)
    assert_same(dict(converted), model.state_dict())
    assert_same(to_vmamba(converted), weights)


@pytest.fixture
def training(tmp_path, monkeypatch):
    """A file as the published training saves it, without what its config needs to be read."""
    yacs, config = types.ModuleType('yacs'), types.ModuleType('yacs.config')

    class CfgNode(dict):
        """As yacs has it: a dict with flags among its attributes."""

        def __init__(self, *args):
            super().__init__(*args)
            self.__dict__['__immutable__'] = True

    CfgNode.__module__, CfgNode.__qualname__ = 'yacs.config', 'CfgNode'
    config.CfgNode = CfgNode
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, 'yacs', yacs)
        patch.setitem(sys.modules, 'yacs.config', config)
        model, weights = published(**CLASSIFIER)
        average = {key: value + 1 for key, value in weights.items()}
        settings = CfgNode(dict(MODEL=CfgNode(dict(NAME='vssm1_tiny', DEPTHS=[2, 2]))))
        file = dict(model=weights, optimizer={}, epoch=264, config=settings, model_ema=average)
        torch.save(file, tmp_path / 'vssm.pth')
    return model, weights, tmp_path / 'vssm.pth'


def test_training_files_are_read_without_yacs(training):
    model, weights, file = training
    assert 'yacs' not in sys.modules
    assert read_checkpoint(str(file))['config']['MODEL']['NAME'] == 'vssm1_tiny'
    assert_same(read_weights(str(file)), weights)
    loaded = build(seed=1, **CLASSIFIER)
    PretrainedVMamba(file)(loaded)
    assert_same(loaded.state_dict(), model.state_dict())
    PretrainedVMamba(f'{file}#model_ema')(loaded)
    assert_same(loaded.state_dict(), {k: v + 1 for k, v in model.state_dict().items()})


@pytest.mark.parametrize('form', ['published', 'ours'])
def test_a_dense_model_starts_from_a_classifier_with_norms_of_its_own(training, tmp_path, form):
    model, _, file = training
    if form == 'ours':
        file = tmp_path / 'ours.pth'
        torch.save(dict(state_dict=model.state_dict()), file)
    torch.manual_seed(1)
    dense = VMamba(ARCH, **DENSE, init_cfg=dict(type='mmvim.PretrainedVMamba', checkpoint=file))
    norms = ('tap_norms', 'norm_f')
    norms = {k: v.clone() for k, v in dense.state_dict().items() if k.startswith(norms)}
    dense.init_weights()
    assert len(norms) == 4
    expected = {k: v for k, v in model.state_dict().items() if not k.startswith('norm_f')}
    assert_same(dense.state_dict(), expected | norms)


def test_fewer_taps_take_what_they_have_a_use_for(tmp_path):
    whole, weights = published(dict(ARCH, depths=(1, 1, 1)), out_indices=(0, 1, 2))
    torch.save(dict(model=weights), tmp_path / 'dense.pth')
    part = build(dict(ARCH, depths=(1, 1, 1)), seed=1, out_indices=(0, 2))
    PretrainedVMamba(tmp_path / 'dense.pth')(part)
    kept = {k: v for k, v in whole.state_dict().items() if not k.startswith('tap_norms.1')}
    assert_same(part.state_dict(), kept)


@pytest.mark.parametrize('form', ['published', 'ours'])
def test_a_model_cut_short_takes_the_norms_of_its_own_taps(tmp_path, form):
    arch = dict(ARCH, depths=(1, 1, 1))
    dense, weights = published(arch, out_indices=(0, 1, 2))
    weights = weights if form == 'published' else dense.state_dict()
    torch.save(dict(model=weights), tmp_path / 'dense.pth')
    names = {'norm_f.weight': 'tap_norms.1.weight', 'norm_f.bias': 'tap_norms.1.bias'}
    for start in (PretrainedVMamba(tmp_path / 'dense.pth'), load_start_of(weights)):
        cut = build(arch, seed=1, out_indices=(0, 1))
        start(cut)
        expected = {key: dense.state_dict()[names.get(key, key)] for key in cut.state_dict()}
        assert_same(cut.state_dict(), expected)


def load_start_of(weights):
    return lambda model: load_start(Segmentor(model), dict(model=weights), 'dense.pth')


@pytest.mark.parametrize('out_norm', ['none', 'last', 'all'])
def test_the_norm_of_a_classifier_is_that_of_its_last_stage(training, out_norm):
    model, weights, file = training
    for start in (PretrainedVMamba(file), load_start_of(weights)):
        cut = VMamba(ARCH, out_indices=0, out_norm=out_norm)
        start(cut)
        state = cut.state_dict()
        assert torch.equal(state['layers.0.blocks.0.op.Ds'], model.layers[0]['blocks'][0].op.Ds)
        norms = [value for key, value in state.items() if key.startswith('norm_f')]
        assert [value.unique().item() for value in norms] == ([] if out_norm == 'none' else [1, 0])


def test_another_backbone_is_named(training):
    vim = VisionMamba(dict(embed_dims=8, num_layers=1), img_size=32)
    with pytest.raises(UserError, match=r'PretrainedVMamba starts a VMamba, not a VisionMamba'):
        PretrainedVMamba(training[2])(vim)
    with pytest.raises(UserError, match=r'PretrainedVim starts a VisionMamba, not a VMamba'):
        PretrainedVim(training[2])(build(**CLASSIFIER))


def test_what_does_not_fit_is_named(tmp_path):
    _, weights = published(**CLASSIFIER)
    gone = weights.pop('layers.1.blocks.0.op.Ds')
    torch.save(dict(model=weights), tmp_path / 'cut.pth')
    model = build(**CLASSIFIER)
    with pytest.raises(UserError, match=r'1 key missing \(layers\.1\.blocks\.0\.op\.Ds\)'):
        PretrainedVMamba(tmp_path / 'cut.pth')(model)
    PretrainedVMamba(tmp_path / 'cut.pth', allow_missing=['layers.1.blocks.0.op.Ds'])(model)
    weights |= {'layers.1.blocks.0.op.Ds': gone, 'layers.1.blocks.0.attn.qkv': gone}
    torch.save(dict(model=weights), tmp_path / 'odd.pth')
    with pytest.raises(UserError, match=r'1 keys do not belong .*attn\.qkv'):
        PretrainedVMamba(tmp_path / 'odd.pth')(model)


class Segmentor(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.decode_head = backbone, nn.Conv2d(16, 2, 1)


def test_whole_models_load_published_dense_files():
    """As tests, predictions and ``load_from`` read them, with a head."""
    backbone, weights = published(**DENSE)
    del weights['classifier.head.weight'], weights['classifier.head.bias']
    head = {'decode_head.weight': torch.randn(2, 16, 1, 1), 'decode_head.bias': torch.randn(2)}
    file = dict(state_dict={f'backbone.{k}': v for k, v in weights.items()} | head)
    model = Segmentor(build(seed=1, **DENSE))
    load_strictly(model, file, 'dense.pth')
    assert_same(model.backbone.state_dict(), backbone.state_dict())
    assert torch.equal(model.decode_head.bias, head['decode_head.bias'])


def test_a_training_starts_from_a_classifier():
    backbone, weights = published(**CLASSIFIER)
    torch.manual_seed(1)
    model = Segmentor(VMamba(ARCH, **DENSE))
    load_start(model, dict(model=weights), 'vssm.pth')
    state = model.backbone.state_dict()
    for key, value in backbone.state_dict().items():
        if not key.startswith('norm_f'):
            assert torch.equal(state[key], value), key
    assert state['norm_f.weight'].eq(1).all() and state['tap_norms.0.bias'].eq(0).all()


def test_vim_and_vmamba_refuse_each_other_by_name():
    vmamba, vim = build(**DENSE), VisionMamba(dict(embed_dims=8, num_layers=1), img_size=32)
    for weights in (vim.state_dict(), to_official(vim.state_dict())):
        for load in (load_strictly, load_start):
            with pytest.raises(UserError, match=r'keys are those of Vim'):
                load(Segmentor(vmamba), dict(state_dict=weights), 'vim.pth')
    theirs = published(**DENSE)[1]
    for weights in (vmamba.state_dict(), theirs, first_release(theirs)):
        for load in (load_strictly, load_start):
            with pytest.raises(UserError, match=r'keys are those of VMamba'):
                load(Segmentor(vim), dict(state_dict=weights), 'vmamba.pth')


def test_initialisers_and_converters_refuse_each_other_by_name(tmp_path):
    vmamba, vim = build(**DENSE), VisionMamba(dict(embed_dims=8, num_layers=1), img_size=32)
    file = tmp_path / 'weights.pth'
    for weights in (vim.state_dict(), to_official(vim.state_dict())):
        torch.save(dict(model=weights), file)
        for read in (lambda w: PretrainedVMamba(file)(vmamba), convert_vmamba, to_vmamba):
            with pytest.raises(UserError, match=r'no VMamba checkpoint: its keys are those of Vim'):
                read(weights)
    theirs = published(**DENSE)[1]
    for weights in (vmamba.state_dict(), theirs, first_release(theirs)):
        torch.save(dict(model=weights), file)
        for read in (lambda w: PretrainedVim(file)(vim), convert_official, to_official):
            with pytest.raises(UserError, match=r'no Vim checkpoint: its keys are those of VMamba'):
                read(weights)
