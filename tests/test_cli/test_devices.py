"""Mixed precision and devices, with and without an accelerator."""

import pytest
import torch
from mmengine.config import Config

from mmvim.cli import devices
from mmvim.cli.loaders import fill_loaders
from mmvim.errors import UserError


def wrapper(**settings: object) -> Config:
    """A config with this optimizer wrapper."""
    return Config(dict(optim_wrapper=dict(settings)))


@pytest.mark.parametrize('type_', [None, 'OptimWrapper', 'mmengine.OptimWrapper'])
def test_amp_replaces_the_plain_wrapper(type_: str | None) -> None:
    cfg = wrapper(clip_grad=1, **({} if type_ is None else dict(type=type_)))
    devices.enable_amp(cfg)
    assert cfg.optim_wrapper == dict(type='AmpOptimWrapper', loss_scale='dynamic', clip_grad=1)


def test_amp_of_the_config_stays_as_it_is() -> None:
    settings = dict(type='AmpOptimWrapper', loss_scale=512.0, dtype='bfloat16')
    cfg = wrapper(**settings)
    devices.enable_amp(cfg)
    assert cfg.optim_wrapper == settings


@pytest.mark.parametrize('there', [True, False])
def test_amp_needs_an_accelerator(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, 'has_amp_accelerator', lambda: there)
    devices.check_amp(wrapper(type='OptimWrapper'))
    devices.check_amp(Config(dict(optim_wrapper=None)))
    if there:
        devices.check_amp(wrapper(type='AmpOptimWrapper'))
    else:
        with pytest.raises(UserError, match='needs a GPU'):
            devices.check_amp(wrapper(type='mmengine.AmpOptimWrapper'))


def test_device_names() -> None:
    assert devices.check_device('cpu') == torch.device('cpu')
    for name in ('gpu', 'cuda:99'):
        with pytest.raises(UserError, match=f'--device {name} cannot be used'):
            devices.check_device(name)


@pytest.mark.parametrize(('workers', 'persistent'), [(0, False), (2, True)])
def test_loaders_of_mmpretrain_get_its_defaults(workers: int, persistent: bool) -> None:
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
