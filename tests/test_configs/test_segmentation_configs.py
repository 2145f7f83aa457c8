"""Every segmentation config: builds as it is, and trains and predicts scaled down by size alone."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

import mmvim  # noqa: F401 (registers)

mmseg = pytest.importorskip('mmseg')

CONFIGS = Path(__file__).parents[2] / 'configs'
FILES = sorted(path for family in ('upernet', 'demo') for path in (CONFIGS / family).glob('*.py'))
IDS = [path.stem for path in FILES]
SIDE, WIDTH = 64, 32


def scaled(value, factor):
    """Image sizes in a pipeline, (2048, 512) say, divided by ``factor``."""
    if isinstance(value, dict):
        return {key: scaled(entry, factor) for key, entry in value.items()}
    if isinstance(value, list):
        return [scaled(entry, factor) for entry in value]
    if isinstance(value, tuple) and all(type(entry) is int and entry > SIDE for entry in value):
        return tuple(entry // factor for entry in value)
    return value


def shrink(cfg, folder):
    """Scale a config down by size alone: widths, image sizes, batch; nothing is swapped."""
    model, backbone = cfg.model, cfg.model.backbone
    if backbone.type == 'mmvim.VisionMamba':
        depth = {'nano': 4}.get(backbone.arch, 24)
        backbone.arch = dict(embed_dims=WIDTH, num_layers=depth, d_state=4)
    else:
        backbone.embed_dims = WIDTH
    size = backbone.img_size
    factor = (size if isinstance(size, int) else size[0]) // SIDE
    backbone.img_size = SIDE
    model.data_preprocessor.size = (SIDE, SIDE)
    model.neck.embed_dim = WIDTH
    model.decode_head.in_channels = [WIDTH] * 4
    model.decode_head.channels = model.auxiliary_head.channels = WIDTH
    model.auxiliary_head.in_channels = WIDTH
    if model.test_cfg.mode == 'slide':
        model.test_cfg.crop_size = (SIDE, SIDE)
        model.test_cfg.stride = tuple(stride // factor for stride in model.test_cfg.stride)
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg[name]
        loader.update(num_workers=0, persistent_workers=False, batch_size=min(2, loader.batch_size))
        loader.dataset.pipeline = scaled(loader.dataset.pipeline, factor)
        loader.dataset.data_root = str(folder / 'data')
    cfg.train_cfg.update(max_iters=1, val_interval=1)
    cfg.work_dir = str(folder / 'work_dir')
    cfg.experiment_name = folder.name


def write_images(cfg):
    """Two images per split where the config's datasets look for them."""
    generator = np.random.default_rng(0)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        dataset = loader.dataset
        suffixes = dataset.get('img_suffix', '.jpg'), dataset.get('seg_map_suffix', '.png')
        for key, suffix in zip(('img_path', 'seg_map_path'), suffixes):
            folder = Path(dataset.data_root) / dataset.data_prefix[key]
            folder.mkdir(parents=True)
            for i in range(2):
                # Photos come in all sizes, patterns in one.
                width = SIDE + (0 if suffixes[0] == '.png' else 20 * i)
                channels, high = ((3,), 255) if key == 'img_path' else ((), 9)
                pixels = generator.integers(0, high, (SIDE, width, *channels), dtype=np.uint8)
                cv2.imwrite(str(folder / f'{i}{suffix}'), pixels)


@pytest.mark.parametrize('file', FILES, ids=IDS)
def test_trains_a_step_and_predicts(file, tmp_path):
    cfg = Config.fromfile(file)
    shrink(cfg, tmp_path)
    write_images(cfg)
    torch.manual_seed(0)
    runner = Runner.from_cfg(cfg)
    reached = set()
    for name, param in runner.model.named_parameters():
        param.register_hook(lambda grad, name=name: reached.add(name))
    model = runner.train()
    losses = runner.message_hub.get_scalar('train/loss').data[0]
    assert len(losses) == 1 and np.isfinite(losses).all()
    assert reached == {name for name, _ in model.named_parameters()}
    metrics = runner.test()
    assert 0 <= metrics['mIoU'] <= 100


@pytest.mark.parametrize('file', FILES, ids=IDS)
def test_builds_at_full_size(file):
    cfg = Config.fromfile(file)
    init_default_scope(cfg.default_scope)
    from mmseg.registry import MODELS

    model = MODELS.build(cfg.model)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    # The paper's sizes of the whole model, in whole millions, rounded up.
    paper = {'vim-tiny_upernet': 13, 'vim-small_upernet': 46}
    for name, expected in paper.items():
        if file.name.startswith(name):
            assert expected - 1 < millions <= expected


@pytest.mark.parametrize(
    'size, lr, weight_decay, channels', [('tiny', 2e-4, 0.1, 192), ('small', 1e-4, 0.05, 384)]
)
def test_published_recipe(size, lr, weight_decay, channels):
    """The figures of the published ADE20K recipe, as the config resolves."""
    cfg = Config.fromfile(CONFIGS / f'upernet/vim-{size}_upernet_4xb8-60k_ade20k-512x512.py')
    optimizer = cfg.optim_wrapper.optimizer
    assert cfg.optim_wrapper.type == 'OptimWrapper'  # fp32
    assert (optimizer.type, optimizer.lr) == ('AdamW', lr)
    assert (optimizer.weight_decay, optimizer.betas) == (weight_decay, (0.9, 0.999))
    warm_up, decay = cfg.param_scheduler
    assert (warm_up.type, warm_up.start_factor, warm_up.end) == ('LinearLR', 1e-6, 1500)
    assert (decay.type, decay.power, decay.eta_min, decay.end) == ('PolyLR', 1.0, 0.0, 60000)
    assert cfg.train_cfg.max_iters == 60000
    assert cfg.train_dataloader.batch_size == 8
    assert cfg.train_dataloader.dataset.type == 'ADE20KDataset'
    crop = next(step for step in cfg.train_pipeline if step.type == 'RandomCrop')
    assert crop.crop_size == (512, 512)
    assert cfg.model.test_cfg == dict(mode='slide', crop_size=(512, 512), stride=(341, 341))
    assert cfg.model.backbone.out_indices == [5, 11, 17, 23]
    assert cfg.model.backbone.cls_token == 'none'
    assert cfg.model.backbone.out_norm == 'none'
    assert cfg.model.backbone.tap == ('mixer' if size == 'tiny' else 'residual')
    assert cfg.model.decode_head.type == 'UPerHead'
    assert cfg.model.decode_head.channels == channels
    auxiliary = cfg.model.auxiliary_head
    assert (auxiliary.type, auxiliary.channels, auxiliary.in_index) == ('FCNHead', 256, 2)
    assert auxiliary.loss_decode.loss_weight == 0.4
    assert cfg.model.neck.type == 'Feature2Pyramid'


def test_patterns_config_agrees_with_the_generator():
    from mmvim.datasets.patterns import CLASSES, PALETTE

    cfg = Config.fromfile(CONFIGS / '_base_/datasets/patterns_seg.py')
    assert tuple(cfg.metainfo.classes) == CLASSES
    assert [tuple(colour) for colour in cfg.metainfo.palette] == list(PALETTE)
