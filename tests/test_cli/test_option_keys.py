"""Which --cfg-options keys pass, and what is said about those that do not."""

import copy
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope

from mmvim.cli import option_keys
from mmvim.cli.config import load_config
from mmvim.errors import UserError


@MODELS.register_module()
class OptionBase(BaseModel):
    """Takes ``depth``."""

    def __init__(self, depth: int = 1) -> None:
        super().__init__()


@MODELS.register_module()
class OptionModel(OptionBase):
    """Passes the rest on to :class:`OptionBase`, which does not."""

    def __init__(self, width: int = 1, neck: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)


CONFIG = dict(
    data_root='data/ade',
    model=dict(type='OptionModel', width=3, test_cfg=dict(mode='whole')),
    train_dataloader=dict(
        batch_size=2,
        dataset=dict(
            type='BaseDataset', data_root='data/ade', pipeline=[dict(type='One'), dict(type='Two')]
        ),
    ),
    optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3)),
    param_scheduler=[dict(type='LinearLR', begin=0, end=10)],
    default_hooks=dict(logger=dict(type='LoggerHook')),
    train_cfg=dict(by_epoch=False, max_iters=10),
    test_evaluator=None,
    env_cfg=dict(cudnn_benchmark=True),
    custom=dict(a=1),
)


def check_option_keys(cfg: Config, options: dict[str, Any]) -> None:
    """As :func:`load_config` calls it."""
    merged = copy.deepcopy(cfg)
    merged.merge_from_dict(options)
    option_keys.check_option_keys(cfg, merged, options)


@pytest.fixture
def cfg() -> Config:
    """A config with the shapes that real ones have."""
    init_default_scope('mmengine')
    return Config(CONFIG)


def test_a_new_type_takes_what_stays(cfg: Config) -> None:
    check_option_keys(cfg, {'model.type': 'OptionBase', 'model._delete_': True})
    with pytest.raises(UserError, match=r'model keeps width, test_cfg, which OptionBase does not'):
        check_option_keys(cfg, {'model.type': 'OptionBase'})
    check_option_keys(cfg, {'param_scheduler.0.type': 'ConstantLR'})
    with pytest.raises(
        UserError, match=r'pipeline\.0 keeps to_rgb, which OptionBase does not have'
    ):
        cfg.train_dataloader.dataset.pipeline[0].to_rgb = True
        check_option_keys(cfg, {'train_dataloader.dataset.pipeline.0.type': 'OptionBase'})


@pytest.mark.parametrize(
    'key',
    [
        'model.width',  # it is there
        'model.depth',  # accepted by the base class
        'model.neck',  # accepted by the class
        'model.neck.type',  # deeper than an accepted one
        'model.init_cfg',  # accepted by the base of the base? not passed on: see below
        'model._delete_',
        'param_scheduler.0.end',
        'param_scheduler.0.verbose',
        'train_dataloader.dataset.pipeline.1.type',
        'train_dataloader.num_workers',
        'train_dataloader.dataset.ann_file',
        'optim_wrapper.clip_grad.max_norm',
        'optim_wrapper.paramwise_cfg.custom_keys.norm.decay_mult',
        'optim_wrapper.constructor',
        'optim_wrapper.optimizer.weight_decay',
        'randomness.seed',
        'resume',
        'load_from',
        'tta_model.type',
        'auto_scale_lr.enable',
        'default_hooks.checkpoint.interval',
        'default_hooks.logger.interval',
        'default_hooks.logger.priority',
        'train_cfg.val_interval',
        'env_cfg.mp_cfg.mp_start_method',
        'env_cfg.dist_cfg.backend',
        'model_wrapper_cfg.find_unused_parameters',
        'custom.a',
    ],
)
def test_keys_that_pass(cfg: Config, key: str) -> None:
    if key == 'model.init_cfg':
        with pytest.raises(UserError):  # OptionBase takes no **kwargs, so nothing would read it
            check_option_keys(cfg, {key: 1})
    else:
        check_option_keys(cfg, {key: 1})


@pytest.mark.parametrize(
    ('key', 'where', 'nearest'),
    [
        ('modle.width', "no 'modle' under the root of the config", 'did you mean model.width?'),
        ('model.widht', "no 'widht' under 'model'", 'did you mean model.width?'),
        ('model.dept', "no 'dept' under 'model'", 'did you mean model.depth?'),
        ('optim_wrapper.lr', "no 'lr' under 'optim_wrapper'", 'optim_wrapper.optimizer.lr?'),
        ('optim_wrapper.optimizer.l', "no 'l' under 'optim_wrapper.optimizer'", 'optimizer.lr'),
        ('train_dataloader.num_worker', "no 'num_worker'", 'train_dataloader.num_workers'),
        ('train_cfg.max_iter', "no 'max_iter' under 'train_cfg'", 'train_cfg.max_iters'),
        ('randomnes.seed', "no 'randomnes' under the root", 'randomness.seed'),
        ('default_hooks.checkpont.interval', "no 'checkpont'", 'default_hooks.checkpoint.interval'),
        ('env_cfg.cudnn_benchmrk', "no 'cudnn_benchmrk'", 'env_cfg.cudnn_benchmark'),
        ('custom.b', "no 'b' under 'custom'", ''),
        ('model.test_cfg.mod', "no 'mod' under 'model.test_cfg'", 'model.test_cfg.mode'),
        ('max_iters', "no 'max_iters' under the root", 'train_cfg.max_iters'),
        ('paramscheduler.0.end', "no 'paramscheduler'", 'param_scheduler.0.end'),
        ('optim_wrapper.paramwise_cfg.x', "no 'x' under 'optim_wrapper.paramwise_cfg'", ''),
    ],
)
def test_keys_that_exist_nowhere(cfg: Config, key: str, where: str, nearest: str) -> None:
    with pytest.raises(UserError) as complaint:
        check_option_keys(cfg, {key: 1})
    text = str(complaint.value)
    assert text.startswith(f'--cfg-options {key}: there is {where}')
    assert nearest in text


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'param_scheduler.1.end': 1}, ['Index 1 exceeds the length of list']),
        ({'param_scheduler.end': 1}, ['list indices must be integers']),
        ({'optim_wrapper.x': 1}, ['a dict in the child config but is of type', '`_delete_=True`']),
    ],
)
def test_what_mmengine_cannot_merge_is_named(
    tmp_path: Path, options: dict[str, int], words: list[str]
) -> None:
    path = tmp_path / 'a.py'
    path.write_text("param_scheduler = [dict(type='LinearLR', end=10)]\noptim_wrapper = None\n")
    with pytest.raises(UserError) as complaint:
        load_config(str(path), options)
    assert f'--cfg-options {next(iter(options))} do not fit {path}: ' in str(complaint.value)
    assert all(word in str(complaint.value) for word in words), complaint.value


@pytest.mark.parametrize(
    ('options', 'key'),
    [
        ({'model': {'widht': 2}}, "model.widht: there is no 'widht' under 'model'"),
        ({'randomness.sed': 1}, 'did you mean randomness.seed?'),
        ({'tta_model': {'type': 'OptionBase', 'dept': 1}}, 'did you mean tta_model.depth?'),
    ],
)
def test_what_an_option_brings_along_is_checked(
    cfg: Config, options: dict[str, Any], key: str
) -> None:
    with pytest.raises(UserError) as complaint:
        check_option_keys(cfg, options)
    assert key in str(complaint.value)


def test_a_replaced_dict_is_judged_by_its_new_type(cfg: Config) -> None:
    new = {'model.type': 'OptionBase', 'model._delete_': True}
    check_option_keys(cfg, {**new, 'model.depth': 2})
    with pytest.raises(UserError, match="no 'width' under 'model'"):
        check_option_keys(cfg, {**new, 'model.width': 2})


def test_an_unknown_type_is_left_to_the_build(cfg: Config) -> None:
    check_option_keys(cfg, {'train_dataloader.dataset.pipeline.0.anything': 1})
