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
    'file',
    [
        'upernet/vim-tiny_upernet_4xb8-60k_ade20k-512x512.py',
        'dropin/vim-tiny_setr-mla_4xb8-60k_ade20k-512x512.py',
        'dropin/vim-tiny_dpt_4xb8-60k_ade20k-512x512.py',
    ],
)
def test_segmentation_configs_fit(file):
    pytest.importorskip('mmseg')
    check_channels(Config.fromfile(CONFIGS / file).model)


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
