"""What is checked of a config before anything is built, and what is filled in."""

import copy
from argparse import Namespace
from pathlib import Path

import pytest
from mmengine.config import Config

from mmvim.cli import prepare as module
from mmvim.cli.prepare import (
    check_channels,
    check_launcher,
    fill_loaders,
    prepare,
    prepare_amp,
)
from mmvim.errors import UserError

CONFIGS = Path(__file__).parents[2] / 'configs'
MODEL = dict(
    backbone=dict(type='mmvim.VisionMamba', arch='tiny', out_indices=-1),
    neck=dict(type='mmvim.SimpleFPN', in_channels=192, out_channels=256),
    rpn_head=dict(type='RPNHead', in_channels=256),
    roi_head=dict(
        bbox_roi_extractor=dict(type='SingleRoIExtractor', out_channels=256),
        bbox_head=[dict(type='BBoxHead', in_channels=256)] * 3,
        mask_head=dict(type='FCNMaskHead', in_channels=256),
    ),
)


def changed(path, value):
    model = copy.deepcopy(MODEL)
    *parents, last = path.split('.')
    node = model
    for key in parents:
        node = node[int(key) if key.isdigit() else key]
    node[last] = value
    return model


@pytest.mark.parametrize(
    'path, value, words',
    [
        ('neck.in_channels', 384, ['gives maps of [192]', 'says [384]']),
        ('backbone.arch', 'base', ['gives maps of [768]', 'says [192]']),
        ('backbone.arch', dict(embed_dims=64), ['gives maps of [64]', 'says [192]']),
        ('backbone.out_indices', [5, 23], ['gives maps of [192, 192]', 'says [192]']),
        ('neck.in_channels', [192] * 4, ['gives maps of [192]', 'says [192, 192, 192, 192]']),
        ('neck.out_channels', 128, ['out_channels is 128', 'rpn_head.in_channels is [256]']),
        ('rpn_head.in_channels', 128, ['is 256', 'model.rpn_head.in_channels is [128]']),
        ('roi_head.mask_head.in_channels', 64, ['model.roi_head.mask_head.in_channels is [64]']),
        ('roi_head.bbox_head.2', dict(in_channels=64), ['roi_head.bbox_head.in_channels is [64]']),
        (
            'roi_head.bbox_roi_extractor.out_channels',
            64,
            ['bbox_roi_extractor.out_channels is [64]'],
        ),
    ],
)
def test_numbers_that_differ(path, value, words):
    model = copy.deepcopy(MODEL)
    if path == 'roi_head.bbox_head.2':
        model['roi_head']['bbox_head'][2] = value
    else:
        model = changed(path, value)
    with pytest.raises(UserError) as error:
        check_channels(model)
    assert all(word in str(error.value) for word in words), error.value


PYRAMID = dict(
    backbone=dict(type='mmvim.VisionMamba', arch='tiny', out_indices=[5, 11, 17, 23]),
    neck=dict(type='Feature2Pyramid', embed_dim=192),
    decode_head=dict(type='UPerHead', in_channels=[192] * 4),
    auxiliary_head=dict(type='FCNHead', in_channels=192),
)
CLASSIFIER = dict(
    backbone=dict(type='mmvim.VisionMamba', arch='small', out_type='cls_token'),
    head=dict(type='LinearClsHead', in_channels=384),
)


@pytest.mark.parametrize(
    'model, changes, words',
    [
        (PYRAMID, dict(neck=dict(embed_dim=384)), ['maps of [192, 192, 192, 192]', 'embed_dim']),
        (PYRAMID, dict(backbone=dict(arch='base')), ['maps of [768, 768', 'embed_dim says [192']),
        (PYRAMID, dict(backbone=dict(out_indices=[5, 23])), ['maps of [192, 192] channels']),
        (PYRAMID, dict(neck=dict(rescales=[4, 2])), ['model.neck.embed_dim says [192, 192]']),
        (
            PYRAMID,
            dict(decode_head=dict(in_channels=[192, 192, 192, 96])),
            ['model.neck.embed_dim is 192', 'model.decode_head.in_channels is [192, 192, 192, 96]'],
        ),
        (
            PYRAMID,
            dict(auxiliary_head=dict(in_channels=96)),
            ['auxiliary_head.in_channels is [96]'],
        ),
        (CLASSIFIER, dict(head=dict(in_channels=192)), ['the width of model.backbone is 384']),
        (CLASSIFIER, dict(backbone=dict(arch='tiny')), ['is 192, but model.head.in_channels']),
    ],
)
def test_numbers_that_differ_without_a_neck_or_with_a_pyramid(model, changes, words):
    check_channels(model)
    broken = {name: {**part, **changes.get(name, {})} for name, part in model.items()}
    with pytest.raises(UserError) as error:
        check_channels(broken)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    'model',
    [
        MODEL,
        dict(backbone=MODEL['backbone']),
        dict(MODEL, backbone=dict(type='ResNet', depth=50)),
        dict(MODEL, neck=dict(type='FPN', in_channels=[192], out_channels=256)),
        dict(MODEL, bbox_head=dict(type='Head')),
        dict(MODEL, neck=[dict(type='FPN', in_channels=[1]), dict(type='Other')]),
        changed('roi_head.bbox_roi_extractor', dict(type='GenericRoIExtractor', out_channels=512)),
        changed('backbone.arch', 'unknown'),
    ],
)
def test_silent_about_what_fits_or_is_unknown(model):
    check_channels(model)


@pytest.mark.parametrize(
    'file', sorted(CONFIGS.glob('[a-z]*/*.py')), ids=lambda path: f'{path.parent.name}/{path.stem}'
)
def test_our_configs_fit(file):
    try:
        check_channels(Config.fromfile(file).model)
    except ImportError as error:  # a base in a library that is not installed
        pytest.skip(str(error))


def test_tools_check_before_they_build(tmp_path):
    config = tmp_path / 'a.py'
    model = {name: changed('neck.in_channels', 384)[name] for name in ('backbone', 'neck')}
    config.write_text(f'model = {model}')
    args = Namespace(config=str(config), cfg_options=None)
    with pytest.raises(UserError, match=r'\[192\].*\[384\]'):
        prepare(args, 'testing', 'model')
    with pytest.raises(UserError, match='has no test_cfg, which testing needs'):
        prepare(args, 'testing', 'model', 'test_cfg')


PYTORCH = dict(RANK='0', WORLD_SIZE='2', LOCAL_RANK='0', MASTER_ADDR='host', MASTER_PORT='29500')


@pytest.mark.parametrize(
    'launcher, environment, words',
    [
        ('pytorch', {}, ['needs RANK, WORLD_SIZE', 'lacks RANK, WORLD_SIZE', 'MASTER_PORT: start']),
        ('pytorch', dict(PYTORCH, MASTER_ADDR=''), ['lacks MASTER_ADDR: start']),
        ('slurm', PYTORCH, ['needs SLURM_PROCID, SLURM_NTASKS']),
        ('mpi', PYTORCH, ['OMPI_COMM_WORLD_RANK']),
    ],
)
def test_launchers_need_their_environment(launcher, environment, words, monkeypatch):
    for names in module._ENVIRONMENT.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as error:
        check_launcher(launcher, 0)
    assert all(word in str(error.value) for word in words), error.value
    for name, value in PYTORCH.items():
        monkeypatch.setenv(name, value)
    check_launcher('pytorch', 0)
    check_launcher('none', 0)


def wrapper(**settings):
    return Config(dict(optim_wrapper=settings))


@pytest.mark.parametrize('type_', [None, 'OptimWrapper', 'mmengine.OptimWrapper'])
def test_amp_replaces_the_plain_wrapper(type_, monkeypatch):
    monkeypatch.setattr(module, 'has_amp_accelerator', lambda: True)
    cfg = wrapper(clip_grad=1, **({} if type_ is None else dict(type=type_)))
    prepare_amp(cfg, enable=False)
    assert 'loss_scale' not in cfg.optim_wrapper
    prepare_amp(cfg, enable=True)
    assert cfg.optim_wrapper == dict(type='AmpOptimWrapper', loss_scale='dynamic', clip_grad=1)


def test_amp_of_the_config_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(module, 'has_amp_accelerator', lambda: True)
    settings = dict(type='AmpOptimWrapper', loss_scale=512.0, dtype='bfloat16')
    for enable in (True, False):
        cfg = wrapper(**settings)
        prepare_amp(cfg, enable)
        assert cfg.optim_wrapper == settings
    with pytest.raises(UserError, match=r'optim_wrapper\.type=ApexOptimWrapper'):
        prepare_amp(wrapper(type='ApexOptimWrapper'), enable=True)


def test_amp_needs_an_accelerator(monkeypatch):
    monkeypatch.setattr(module, 'has_amp_accelerator', lambda: False)
    prepare_amp(wrapper(type='OptimWrapper'), enable=False)
    for type_, enable in (('mmengine.AmpOptimWrapper', False), ('OptimWrapper', True)):
        with pytest.raises(UserError, match='needs a GPU'):
            prepare_amp(wrapper(type=type_), enable)


@pytest.mark.parametrize('workers, persistent', [(0, False), (2, True)])
def test_loaders_of_mmpretrain_get_its_defaults(workers, persistent):
    loader = dict(num_workers=workers, pin_memory=False)
    cfg = Config(dict(default_scope='mmpretrain', train_dataloader=loader, val_dataloader=None))
    fill_loaders(cfg)
    assert cfg.train_dataloader == dict(
        num_workers=workers,
        pin_memory=False,
        persistent_workers=persistent,
        collate_fn=dict(type='default_collate'),
    )
    other = Config(dict(default_scope='mmseg', train_dataloader=dict(num_workers=workers)))
    fill_loaders(other)
    assert other.train_dataloader == dict(num_workers=workers)
