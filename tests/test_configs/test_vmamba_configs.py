"""Every config of VMamba: the published recipe, and a step of it scaled down by size alone."""

import numpy as np
import pytest
import torch
import yaml
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')
pytest.importorskip('mmpretrain')

import scaled_down
import scaled_down_classification
import scaled_down_detection
from repository import CONFIGS, load_config

from mmvim.checkpoints import to_vmamba
from mmvim.models import VMamba

FILES = sorted((CONFIGS / 'vmamba').glob('*.py'))
NAMES = [path.stem for path in FILES]
DIMS = [8, 16, 32, 64]
SIZES = {
    'tiny-s1l8': ('tiny_s1l8', 0.2, 30_249_064),
    'small-s2l15': ('small_s2l15', 0.3, 50_147_752),
    'base-s2l15': ('base_s2l15', 0.6, 88_557_800),
}


def load(name):
    return load_config(f'vmamba/{name}.py')


def kind_of(name):
    return next((k for k in ('upernet', 'mask-rcnn') if k in name), 'classifier')


def shrink(cfg, kind, folder):
    """Widths, depths and image sizes, and one iteration, in ``folder``."""
    cfg.model.backbone.arch = dict(dims=DIMS, depths=[1, 1, 1, 1])
    if kind == 'upernet':
        cfg.model.decode_head.update(in_channels=DIMS, channels=8)
        cfg.model.auxiliary_head.update(in_channels=DIMS[2], channels=8)
        scaled_down.scaled(cfg.model, scaled_down.SIZE_KEYS, 8)
        scaled_down.confine(cfg, folder, 2, scaled_down.SIZE_KEYS, 8)
        cfg.val_dataloader.batch_size = cfg.test_dataloader.batch_size = 1
        scaled_down.write_images(cfg)
    elif kind == 'mask-rcnn':
        cfg.model.neck.in_channels = DIMS
        scaled_down.scaled(cfg.model, scaled_down_detection.COUNT_KEYS, 50)
        scaled_down.confine(cfg, folder, 2, scaled_down_detection.SIZE_KEYS, 16)
        for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
            evaluator.ann_file = str(folder / 'data' / cfg.test_dataloader.dataset.ann_file)
        cfg.model.test_cfg.rcnn.score_thr = 0.0  # an untrained detector is sure of nothing
        scaled_down_detection.write_coco(cfg)
    else:
        cfg.model.head.in_channels = DIMS[3]
        keys = scaled_down_classification.SIZE_KEYS
        scaled_down.scaled(cfg.model, keys, 3)
        scaled_down.confine(cfg, folder, 4, keys, 3)
        scaled_down_classification.write_images(cfg)


def marked(name):
    """Scaled down, the sizes differ in little: those of T at once, the others in `make slow`."""
    tiny = name.startswith('vmamba-tiny')
    return pytest.param(name, marks=pytest.mark.stack if tiny else pytest.mark.slow)


@pytest.mark.operators
@pytest.mark.parametrize('name', [marked(name) for name in NAMES])
def test_trains_a_step_and_predicts(name, tmp_path):
    cfg = load(name)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        shrink(cfg, kind_of(name), tmp_path)
        torch.manual_seed(0)
        np.random.seed(0)
        runner = Runner.from_cfg(cfg)
        reached = set()
        for key, param in runner.model.named_parameters():
            param.register_hook(lambda grad, key=key: reached.add(key))
        model = runner.train()
        losses = runner.message_hub.get_scalar('train/loss').data[0]
        assert len(losses) == 1 and np.isfinite(losses).all()
        assert reached == {key for key, _ in model.named_parameters()}
        assert runner.test()


@pytest.mark.parametrize('name', NAMES)
def test_full_size_model_is_the_published_one(name):
    cfg = load(name)
    size = next(key for key in SIZES if key in name)
    arch, drop_path, params = SIZES[size]
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('meta'):
        model = MODELS.build(cfg.model)
    backbone = model.backbone
    assert cfg.model.backbone.arch == arch
    last = backbone.layers[-1]['blocks'][-1].drop_path
    assert last.drop_prob == pytest.approx(drop_path)
    if kind_of(name) == 'classifier':
        assert sum(param.numel() for param in model.parameters()) == params
    else:
        assert backbone.out_indices == (0, 1, 2, 3) and len(backbone.tap_norms) == 3


@pytest.mark.parametrize('size', SIZES)
def test_published_recipes(size):
    cfg = load(f'vmamba-{size}_8xb128-300e_in1k')
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.weight_decay, optimizer.betas) == (1e-3, 0.05, (0.9, 0.999))
    assert cfg.optim_wrapper.clip_grad.max_norm == 5 and cfg.train_cfg.max_epochs == 300
    warm_up, cosine = cfg.param_scheduler
    assert optimizer.lr * warm_up.start_factor == pytest.approx(1e-6) and warm_up.end == 20
    assert (cosine.begin, cosine.end, cosine.eta_min) == (20, 300, 1e-5)
    assert cfg.train_dataloader.batch_size == 128
    assert cfg.train_dataloader.sampler.type == 'DefaultSampler'  # no repeated augmentation
    assert cfg.custom_hooks[1].momentum == pytest.approx(1 - 0.9999)

    cfg = load(f'vmamba-{size}_upernet_8xb2-160k_ade20k-512x512')
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.weight_decay) == (6e-5, 0.01)
    assert cfg.train_cfg.max_iters == 160_000 and cfg.param_scheduler[0].end == 1500
    assert cfg.model.test_cfg.mode == 'whole' and cfg.train_dataloader.batch_size == 2
    assert cfg.model.decode_head.channels == 512 and cfg.model.auxiliary_head.in_index == 2
    assert cfg.model.auxiliary_head.loss_decode.loss_weight == 0.4

    cfg = load(f'vmamba-{size}_mask-rcnn_8xb2-1x_coco')
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.weight_decay) == (1e-4, 0.05)
    assert cfg.train_cfg.max_epochs == 12 and cfg.param_scheduler[1].milestones == [8, 11]
    assert cfg.param_scheduler[0].end == 1000 and cfg.train_dataloader.batch_size == 2
    if size != 'base-s2l15':
        cfg = load(f'vmamba-{size}_mask-rcnn_8xb2-ms-crop-3x_coco')
        assert cfg.train_cfg.max_epochs == 36 and cfg.param_scheduler[1].milestones == [27, 33]
        kinds = [step.type for step in cfg.train_dataloader.dataset.pipeline]
        assert kinds[3] == 'RandomChoice'


@pytest.mark.parametrize('form', ['', '_as-published'])
def test_what_decays(form):
    """The published rule reads names: what is not called a norm decays."""
    cfg = load(f'vmamba-tiny-s1l8_upernet_8xb2-160k_ade20k-512x512{form}')
    model = torch.nn.Module()
    model.backbone = VMamba(dict(dims=8, depths=(1, 1)), out_indices=(0, 1))
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    free = {name for g in groups if not g['weight_decay'] for name in g['param_names']}
    names = [name for name, _ in model.backbone.named_parameters()]
    theirs = to_vmamba({name: torch.tensor(i) for i, name in enumerate(names)})
    for key, number in theirs.items():
        name = f'backbone.{names[number]}'
        param = model.get_parameter(name)
        kept = 'A_logs' in key or 'dt_projs_bias' in key or param.ndim < 2
        assert (name in free) is ('norm' in key if form else kept), key


def test_metafile_has_the_papers_figures():
    """Labelled as the paper's, as none of them was measured here."""
    content = yaml.safe_load((CONFIGS / 'vmamba' / 'metafile.yml').read_text())
    assert {model['Name'] for model in content['Models']} == {*NAMES}
    found = {
        model['Name']: [
            figure for result in model['Results'] for figure in result['Metrics'].items()
        ]
        for model in content['Models']
        if 'Results' in model
    }
    assert found['vmamba-tiny-s1l8_8xb128-300e_in1k'] == [('Top 1 Accuracy (paper)', 82.6)]
    assert ('box AP (paper)', 48.7) in found['vmamba-small-s2l15_mask-rcnn_8xb2-1x_coco']
    assert all(name.endswith('(paper)') for figures in found.values() for name, _ in figures)
