"""Every classification config: builds as it is, and trains and tests scaled down by size alone."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, DefaultScope
from mmengine.runner import Runner

pytest.importorskip('mmpretrain')

from repository import CONFIGS, load_config
from scaled_down_classification import shrink, write_images

from mmvim.cli.result_table import paper_metrics
from mmvim.errors import UserError
from mmvim.models import VisionMamba
from mmvim.models.pos_embed import resize_pos_embed
from mmvim.models.token_layout import cls_positions

FILES = sorted((CONFIGS / 'vim').glob('*.py')) + sorted((CONFIGS / 'demo').glob('*_1xb16-*.py'))
IDS = [path.stem for path in FILES]
TINY, SMALL, BASE = (
    'vim-tiny_8xb128-300e_in1k',
    'vim-small_8xb64-300e_in1k',
    'vim-base_8xb64-300e_in1k',
)
FINE_TUNES = ('vim-tiny-stride8_8xb128-30e_in1k', 'vim-small-stride8_8xb128-30e_in1k')
ABLATION = 'vim-tiny-{}_8xb128-300e_in1k'


def load(name):
    return load_config(FILES[IDS.index(name)])


@pytest.fixture(autouse=True)
def in_mmpretrain():
    """The scope that a runner would leave behind ends with the test."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


@pytest.mark.parametrize('name', IDS)
def test_trains_a_step_and_predicts(name, tmp_path):
    cfg = load(name)
    shrink(cfg, tmp_path)
    write_images(cfg)
    torch.manual_seed(0)
    np.random.seed(0)
    runner = Runner.from_cfg(cfg)
    reached, sizes = set(), []
    training = {key: p for key, p in runner.model.named_parameters() if p.requires_grad}
    for key, param in training.items():
        param.register_hook(lambda grad, key=key: reached.add(key))
    runner.model.backbone.register_forward_hook(
        lambda module, args, output: sizes.append(tuple(args[0].shape))
    )
    runner.train()
    losses = runner.message_hub.get_scalar('train/loss').data[0]
    assert len(losses) == 1 and np.isfinite(losses).all()
    assert reached == training.keys()
    metrics = runner.test()
    top1 = metrics['accuracy/top1']
    assert any(math.isclose(top1, share, abs_tol=1e-3) for share in (0, 100 / 3, 200 / 3, 100))
    # One batch of training, one of the test with all three images.
    assert [shape[0] for shape in sizes] == [4, 3]


# Parameters with the classifier, of the released files.
PARAMS = {
    TINY: 7_148_008,
    SMALL: 25_796_584,
    BASE: 97_598_440,
    FINE_TUNES[0]: 7_250_344,
    FINE_TUNES[1]: 26_001_256,
}


@pytest.mark.parametrize('name', PARAMS)
def test_full_size_model_is_the_released_one(name, goldens):
    """As many parameters, and where strides are those of the key table the same shapes."""
    with torch.device('meta'):
        model = MODELS.build(load(name).model)
    assert sum(param.numel() for param in model.parameters()) == PARAMS[name]
    tokens = 196 if name not in FINE_TUNES else 729
    assert model.backbone.pos_embed.shape[1] == tokens
    assert cls_positions(model.backbone.cls_token_type, tokens) == (98 if tokens == 196 else 364,)
    if name in FINE_TUNES:
        return
    table = json.loads(
        (goldens / 'cls' / f'statedict_vim_{name.split("-")[1].split("_")[0]}.json').read_text()
    )
    shapes = {key: value for key, value in table.get('keys', table).items()}
    head = {key: shapes[f'head.{key}'] for key in ('weight', 'bias')}
    head = {
        key: value['shape'] if isinstance(value, dict) else value for key, value in head.items()
    }
    ours = {key: list(param.shape) for key, param in model.head.fc.named_parameters()}
    assert ours == head


@pytest.mark.parametrize(
    'name, batch, weight_decay, drop_path, scale_base',
    [
        (TINY, 128, 0.1, 0.0, 1024),
        (SMALL, 64, 0.05, 0.05, 512),
        (BASE, 64, 0.05, 0.05, 512),  # not published: the recipe of Vim-S
        (FINE_TUNES[0], 128, 1e-8, 0.0, 1024),
        (FINE_TUNES[1], 128, 1e-8, 0.0, 1024),
    ],
)
def test_published_recipe(name, batch, weight_decay, drop_path, scale_base):
    """The figures of the published ImageNet-1K recipes, as the config resolves."""
    cfg = load(name)
    fine_tune = name in FINE_TUNES
    optimizer = cfg.optim_wrapper.optimizer
    assert cfg.optim_wrapper.type == 'OptimWrapper'  # fp32
    assert (optimizer.type, optimizer.lr) == ('AdamW', 1e-5 if fine_tune else 1e-3)
    assert (optimizer.weight_decay, optimizer.betas) == (weight_decay, (0.9, 0.999))
    assert 'clip_grad' not in cfg.optim_wrapper
    assert cfg.train_cfg == dict(by_epoch=True, max_epochs=30 if fine_tune else 300, val_interval=1)
    assert cfg.auto_scale_lr.base_batch_size == scale_base
    loader = cfg.train_dataloader
    assert (loader.batch_size, loader.drop_last) == (batch, True)
    assert scale_base == 8 * batch
    assert loader.sampler == dict(type='mmpretrain.RepeatAugSampler', num_repeats=3, shuffle=True)
    # The average: a decay of 0.99996.
    (average,) = (hook for hook in cfg.custom_hooks if hook.type == 'EMAHook')
    assert 1 - average.momentum == pytest.approx(0.99996, abs=1e-12)

    assert loader.dataset.type == 'ImageNet'
    steps = {step.type: step for step in loader.dataset.pipeline}
    assert steps['RandomResizedCrop'].scale == 224
    assert steps['RandomFlip'].prob == 0.5
    augment = steps['RandAugment']
    assert augment.policies == 'timm_increasing'
    assert (augment.magnitude_level, augment.magnitude_std, augment.num_policies) == (9, 0.5, 2)
    erasing = steps['RandomErasing']
    assert (erasing.erase_prob, erasing.mode) == (0.25, 'rand')
    test = {step.type: step for step in cfg.test_dataloader.dataset.pipeline}
    assert (test['ResizeEdge'].scale, test['ResizeEdge'].interpolation) == (256, 'bicubic')
    assert test['CenterCrop'].crop_size == 224
    assert cfg.test_dataloader == cfg.val_dataloader

    model = cfg.model
    assert model.train_cfg.augments == [
        dict(type='Mixup', alpha=0.8),
        dict(type='CutMix', alpha=1.0),
    ]
    loss = model.head.loss
    assert (loss.type, loss.label_smooth_val, loss.mode) == ('LabelSmoothLoss', 0.1, 'original')
    backbone = model.backbone
    assert backbone.drop_path_rate == drop_path
    assert (backbone.cls_token, backbone.direction) == ('middle', 'ssm_conv')
    assert backbone.get('patch_stride', 16) == (8 if fine_tune else 16)
    # From scratch a constant 1e-5 would lead nowhere.
    assert (cfg.load_from is not None) == fine_tune


def learning_rates(cfg, epochs, steps):
    """Rate of a parameter of rate 1 in every iteration, ``steps`` to an epoch."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    defaults = dict(optimizer=OptimWrapper(optimizer), epoch_length=steps)
    schedulers = [
        PARAM_SCHEDULERS.build(entry, default_args=defaults) for entry in cfg.param_scheduler
    ]
    rates = []
    for _ in range(epochs):
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]['lr'])
            for scheduler in schedulers:
                if not scheduler.by_epoch:
                    scheduler.step()
        for scheduler in schedulers:
            if scheduler.by_epoch:
                scheduler.step()
    return rates


@pytest.mark.parametrize('name', [TINY, SMALL, BASE, ABLATION.format('none')])
def test_learning_rate_over_the_run(name):
    """Linear warm-up from a thousandth over 5 epochs, a cosine to 1e-5, nothing after it."""
    cfg = load(name)
    cfg.param_scheduler[1].eta_min /= cfg.optim_wrapper.optimizer.lr
    steps = 4
    rates = learning_rates(cfg, cfg.train_cfg.max_epochs, steps)
    assert rates[0] == pytest.approx(1e-3)
    # A warm-up of n updates reaches the full rate with the last of them.
    risen = [1e-3 + (1 - 1e-3) * i / (5 * steps - 1) for i in range(5 * steps)]
    assert rates[: 5 * steps] == pytest.approx(risen)
    for epoch in (5, 100, 299):
        expected = 0.01 + 0.99 / 2 * (1 + math.cos(math.pi * (epoch - 5) / 295))
        assert rates[epoch * steps : (epoch + 1) * steps] == pytest.approx([expected] * steps)


@pytest.mark.parametrize('name', FINE_TUNES)
def test_fine_tune_starts_from_a_whole_checkpoint_at_a_constant_rate(name, tmp_path):
    """The head too; the position embedding resized; the average from there; no schedule."""
    source = load(
        name.replace('-stride8_8xb128-30e', '_8xb128-300e' if 'tiny' in name else '_8xb64-300e')
    )
    cfg = load(name)
    for one in (source, cfg):
        shrink(one, tmp_path)
    write_images(cfg)
    torch.manual_seed(0)
    start = MODELS.build(source.model)
    start.init_weights()
    weights = start.state_dict()
    torch.save(dict(state_dict=weights), tmp_path / 'start.pth')
    cfg.load_from = str(tmp_path / 'start.pth')
    cfg.train_cfg.update(max_epochs=3, val_begin=4)
    runner = Runner.from_cfg(cfg)
    rates, started = [], {}

    def before(module, args):
        rates.append({group['lr'] for group in runner.optim_wrapper.param_groups})
        if not started:
            (hook,) = (hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook')
            for origin, model in (('model', module), ('average', hook.ema_model.module)):
                started[origin] = copy.deepcopy(model.state_dict())

    runner.model.register_forward_pre_hook(before)
    runner.train()
    assert rates == [{1e-5}] * 3
    grid, target = start.backbone.grid_size, runner.model.backbone.grid_size
    assert target > grid
    expected = dict(weights)
    rows = resize_pos_embed(weights['backbone.pos_embed'], grid, target)
    expected['backbone.pos_embed'] = rows
    expected['backbone.pos_embed_grid'] = torch.tensor(target)
    for state in started.values():
        assert state.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(state[key], value, rtol=0, atol=0, msg=key)


@pytest.mark.parametrize('lost', ['head.fc.bias', 'backbone.layers.3.mixer.D'])
def test_fine_tune_refuses_a_checkpoint_with_a_gap(lost, tmp_path):
    cfg = load(FINE_TUNES[0])
    shrink(cfg, tmp_path)
    write_images(cfg)
    weights = MODELS.build(cfg.model).state_dict()
    del weights[lost]
    torch.save(dict(state_dict=weights), tmp_path / 'start.pth')
    cfg.load_from = str(tmp_path / 'start.pth')
    with pytest.raises(UserError, match=rf'start\.pth does not fit .*{lost}'):
        Runner.from_cfg(cfg).train()


def test_metrics_on_known_answers(tmp_path):
    """A checkpoint without an average, as a converted one is: two of three labels are right."""
    cfg = load(TINY)
    shrink(cfg, tmp_path)
    write_images(cfg)
    torch.manual_seed(0)
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), tmp_path / 'weights.pth')
    cfg.load_from = str(tmp_path / 'weights.pth')
    ranked = {}

    def note(module, args, samples):
        for sample in samples:
            order = sample.pred_score.argsort(descending=True)
            ranked[Path(sample.img_path).name] = order.tolist()

    runner = Runner.from_cfg(copy.deepcopy(cfg))
    runner.model.register_forward_hook(note)
    runner.test()
    assert len(ranked) == 3
    (first, second, third), names = ranked.values(), list(ranked)
    listed = tmp_path / 'data' / 'meta' / 'val.txt'
    for labels, expected in (
        ((first[0], second[0], third[1]), (200 / 3, 100)),
        ((first[0], second[4], third[5]), (100 / 3, 200 / 3)),
    ):
        listed.write_text(''.join(f'{name} {label}\n' for name, label in zip(names, labels)))
        cfg.experiment_name = f'{tmp_path.name}-{labels[1]}'
        metrics = Runner.from_cfg(copy.deepcopy(cfg)).test()
        assert [metrics['accuracy/top1'], metrics['accuracy/top5']] == pytest.approx(
            list(expected), abs=1e-3
        )


@pytest.mark.parametrize('name', [TINY, SMALL, *FINE_TUNES, ABLATION.format('double-token')])
def test_optimiser_groups(name):
    """One rate for all; not decayed are vectors, A_log, position embedding and class tokens."""
    cfg = load(name)
    cfg.model.backbone.arch = dict(embed_dims=32, num_layers=2)
    cfg.model.head.in_channels = 32
    model = MODELS.build(cfg.model)
    optimizer = cfg.optim_wrapper.optimizer
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    params = dict(model.named_parameters())
    names = {param: key for key, param in params.items()}
    found = {}
    for group in wrapper.optimizer.param_groups:
        assert group['lr'] == optimizer.lr
        found.update({names[param]: group['weight_decay'] for param in group['params']})
    assert found.keys() == params.keys()
    undecayed = {key for key, decay in found.items() if decay == 0}
    assert {found[key] for key in found.keys() - undecayed} == {optimizer.weight_decay}
    matrices = {'A_log', 'A_b_log', 'pos_embed', 'cls_token', 'cls_pos_embed'}
    assert undecayed == {
        key for key, p in params.items() if p.ndim <= 1 or key.rpartition('.')[2] in matrices
    }


def test_ablations_differ_from_their_base_in_one_choice():
    """A file for each classification design and, with the mean of the tokens, each direction."""
    designs = {
        'mean-pool': dict(cls_token='none', out_type='avg_featmap'),
        'max-pool': dict(cls_token='none', out_type='raw'),
        'head-token': dict(cls_token='head'),
        'double-token': dict(cls_token='double'),
    }
    base = load(TINY).to_dict()
    for name, choice in designs.items():
        expected = copy.deepcopy(base)
        expected['model']['backbone'].update(choice)
        if name == 'max-pool':
            expected['model']['head']['type'] = 'mmvim.MaxPoolClsHead'
        assert load(ABLATION.format(name)).to_dict() == expected
    base = load(ABLATION.format('mean-pool')).to_dict()
    for direction in VisionMamba.DIRECTIONS:
        if direction != base['model']['backbone']['direction']:
            expected = copy.deepcopy(base)
            expected['model']['backbone']['direction'] = direction
            name = ABLATION.format(direction.replace('_', '-'))
            assert load(name).to_dict() == expected


def test_metafile_has_the_figures_of_the_paper():
    """Released models: the model card; ablations: Tab. 4 and 5."""
    models = yaml.safe_load((CONFIGS / 'vim/metafile.yml').read_text())['Models']
    listed = {model['Name']: paper_metrics(CONFIGS / f'vim/{model["Name"]}.py') for model in models}
    top1 = {
        **{TINY: 76.1, SMALL: 80.5, BASE: 81.9, FINE_TUNES[0]: 78.3, FINE_TUNES[1]: 81.6},
        **{ABLATION.format('mean-pool'): 73.9, ABLATION.format('max-pool'): 73.4},
        **{ABLATION.format('head-token'): 75.2, ABLATION.format('double-token'): 74.3},
        **{ABLATION.format('none'): 73.2, ABLATION.format('block'): 70.9},
        **{ABLATION.format('ssm'): 72.8},
    }
    assert listed == {
        name: {'Top 1 Accuracy': top1[name]} if name in top1 else {} for name in listed
    }
    assert set(listed) == {path.stem for path in (CONFIGS / 'vim').glob('*.py')}
