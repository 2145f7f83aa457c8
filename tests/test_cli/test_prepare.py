"""What is checked of a config before anything is built, and what is filled in."""

from argparse import Namespace
from pathlib import Path

import pytest
from mmengine.config import Config
from torch.utils.data import DataLoader

from mmvim.cli import prepare as module
from mmvim.cli.prepare import (
    check_launcher,
    fill_loaders,
    prepare,
    prepare_amp,
)
from mmvim.errors import UserError

CONFIGS = Path(__file__).parents[2] / 'configs'


def test_tools_check_before_they_build(tmp_path):
    config = tmp_path / 'a.py'
    config.write_text(
        "model = dict(backbone=dict(type='mmvim.VisionMamba'), neck=dict(in_channels=[384]))"
    )
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


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmseg'])
@pytest.mark.parametrize('workers', [0, 2])
def test_loaders_get_what_fits_their_workers(scope, workers):
    given = dict(num_workers=workers, pin_memory=False, persistent_workers=True, prefetch_factor=3)
    cfg = Config(dict(default_scope=scope, train_dataloader=dict(given), val_dataloader=None))
    fill_loaders(cfg)
    collate = dict(collate_fn=dict(type='default_collate')) if scope == 'mmpretrain' else {}
    kept = given if workers else dict(num_workers=0, pin_memory=False)
    assert cfg.train_dataloader == dict(kept, **collate)
    cfg = Config(dict(default_scope='mmpretrain', train_dataloader=dict(num_workers=workers)))
    fill_loaders(cfg)
    assert cfg.train_dataloader.get('persistent_workers', False) == (workers > 0)
    assert cfg.train_dataloader.pin_memory


@pytest.mark.parametrize('workers', [0, 2])
def test_torch_takes_the_loaders(workers):
    cfg = Config(dict(train_dataloader=dict(
        num_workers=workers, persistent_workers=True, prefetch_factor=3,
        multiprocessing_context='fork')))  # fmt: skip
    fill_loaders(cfg)
    DataLoader([1, 2], **cfg.train_dataloader)


def test_trackers_are_asked_for_by_tools_that_run(tmp_path, monkeypatch):
    config = tmp_path / 'a.py'
    backends = "[dict(type='TensorboardVisBackend')]"
    config.write_text(f"visualizer = dict(type='Visualizer', vis_backends={backends})\n")
    monkeypatch.setattr('importlib.util.find_spec', lambda name, *_: name == 'mmengine' or None)
    args = Namespace(config=str(config), cfg_options=None)
    prepare(args, 'browsing', splits=['val'])
    with pytest.raises(UserError, match='TensorboardVisBackend, which needs tensorboard'):
        prepare(Namespace(**vars(args), work_dir=str(tmp_path)), 'testing', splits=['test'])
