"""Every segmentation config: builds as it is, and trains and predicts scaled down by size alone."""

import importlib.util
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from repository import CONFIGS, ROOT, load_config
from scaled_down import shrink, write_images

from mmvim.models import VisionMamba

mmseg = pytest.importorskip('mmseg')

# Families and demos of other libraries have tests of their own.
FILES = sorted(
    path
    for path in CONFIGS.glob('*/*.py')
    if path.parent.name not in ('_base_', 'nuclei', 'vim', 'vitdet', 'vmamba')
    and (path.parent.name != 'demo' or 'upernet' in path.stem)
)
IDS = [path.stem for path in FILES]
# In mixed precision, and with compiled operators.
STACK = {
    'vim-tiny_upernet_4xb8-amp-60k_ade20k-512x512',
    'vim-tiny_mask2former_8xb2-160k_ade20k-512x512',
}
UPERNET = 'upernet/vim-{}_upernet_4xb8-60k_ade20k-512x512{}.py'
STOCK = Path(importlib.util.find_spec('mmseg').origin).parent / '.mim' / 'configs'


def is_missing(cfg):
    """The first module that a config imports and that is not installed, or None."""
    for module in cfg.get('custom_imports', {}).get('imports', ()):
        if importlib.util.find_spec(module.partition('.')[0]) is None:
            return module
    return None


@pytest.mark.parametrize(
    'file',
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.stack] * (path.stem in STACK))
        for path in FILES
    ],
)
def test_trains_a_step_and_predicts(file, tmp_path):
    cfg = load_config(file)
    if (module := is_missing(cfg)) is not None:
        pytest.skip(f'{module} is not installed')
    amp = cfg.optim_wrapper.type == 'AmpOptimWrapper'
    shrink(cfg, tmp_path)
    write_images(cfg)
    torch.manual_seed(0)
    runner = Runner.from_cfg(cfg)
    reached, dtypes = set(), set()
    for name, param in runner.model.named_parameters():
        param.register_hook(lambda grad, name=name: reached.add(name))
    if amp:
        runner.model.decode_head.conv_seg.register_forward_hook(
            lambda module, args, output: dtypes.add(output.dtype)
        )
    model = runner.train()
    losses = runner.message_hub.get_scalar('train/loss').data[0]
    assert len(losses) == 1 and np.isfinite(losses).all()
    assert reached == {name for name, _ in model.named_parameters()}
    assert dtypes == ({torch.bfloat16} if amp else set())
    metrics = runner.test()
    assert 0 <= metrics['mIoU'] <= 100


def test_builds_at_full_size():
    """Every model as it is; each once, since the recipes of a size share theirs."""
    # The paper's sizes of the whole model, in whole millions, rounded up.
    paper = {'vim-tiny_upernet_4xb8-60k_ade20k': 13, 'vim-small_upernet_4xb8-60k_ade20k': 46}
    seen = []
    for file in FILES:
        cfg = load_config(file)
        if cfg.model in seen or is_missing(cfg):
            continue
        seen.append(cfg.model)
        init_default_scope(cfg.default_scope)
        from mmseg.registry import MODELS

        model = MODELS.build(cfg.model)
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        for name, expected in paper.items():
            if file.name.startswith(name):
                assert expected - 1 < millions <= expected
    assert len(seen) >= 14


@pytest.mark.parametrize('form', ['', '_as-published'])
@pytest.mark.parametrize(
    'size, lr, weight_decay, layer_decay, channels',
    [('tiny', 2e-4, 0.1, 0.92, 192), ('small', 1e-4, 0.05, 0.95, 384)],
)
def test_published_recipe(size, lr, weight_decay, layer_decay, channels, form):
    """The figures of the published ADE20K recipe, as the config resolves."""
    cfg = load_config(CONFIGS / UPERNET.format(size, form))
    optimizer = cfg.optim_wrapper.optimizer
    assert cfg.optim_wrapper.type == 'OptimWrapper'  # fp32
    assert (optimizer.type, optimizer.lr) == ('AdamW', lr)
    assert (optimizer.weight_decay, optimizer.betas) == (weight_decay, (0.9, 0.999))
    assert cfg.optim_wrapper.constructor == 'mmvim.LayerDecayOptimWrapperConstructor'
    as_published = dict(as_published='segmentation') if form else {}
    assert cfg.optim_wrapper.paramwise_cfg == dict(layer_decay_rate=layer_decay, **as_published)
    warm_up, decay = cfg.param_scheduler
    assert (warm_up.type, warm_up.start_factor, warm_up.end) == ('LinearLR', 1e-6, 1500)
    assert (decay.type, decay.power, decay.eta_min) == ('PolyLR', 1.0, 0.0)
    assert (decay.begin, decay.end) == (0, 60000)  # under the warm-up too, as in mmcv 1
    assert cfg.train_cfg.max_iters == 60000
    assert cfg.train_dataloader.batch_size == 8
    assert cfg.auto_scale_lr.base_batch_size == 32
    assert cfg.train_dataloader.dataset.type == 'ADE20KDataset'
    crop = next(step for step in cfg.train_pipeline if step.type == 'RandomCrop')
    assert crop.crop_size == (512, 512)
    assert cfg.model.test_cfg == dict(mode='slide', crop_size=(512, 512), stride=(341, 341))
    backbone = cfg.model.backbone
    assert backbone.out_indices == [5, 11, 17, 23]
    assert backbone.cls_token == 'none'
    assert backbone.out_norm == 'none'
    assert backbone.tap == ('mixer' if size == 'tiny' else 'residual')
    # Released weights were not trained with rope, the published run of this size was.
    assert backbone.get('rope', 'none') == ('both' if form and size == 'small' else 'none')
    assert cfg.model.decode_head.type == 'UPerHead'
    assert cfg.model.decode_head.channels == channels
    auxiliary = cfg.model.auxiliary_head
    assert (auxiliary.type, auxiliary.channels, auxiliary.in_index) == ('FCNHead', 256, 2)
    assert auxiliary.loss_decode.loss_weight == 0.4
    assert cfg.model.neck.type == 'Feature2Pyramid'


@pytest.mark.parametrize('size', ['tiny', 'small', 'base'])
def test_amp_changes_the_precision_alone(size):
    plain = load_config(CONFIGS / UPERNET.format(size, '')).to_dict()
    amp = load_config(CONFIGS / UPERNET.format(size, '').replace('60k', 'amp-60k')).to_dict()
    wrapper = amp['optim_wrapper']
    assert wrapper.pop('loss_scale') == dict(enabled=False)
    assert (wrapper.pop('type'), wrapper.pop('dtype')) == ('AmpOptimWrapper', 'bfloat16')
    assert plain['optim_wrapper'].pop('type') == 'OptimWrapper'
    assert amp == plain


def test_cityscapes_crops_are_twice_as_wide_as_high():
    cfg = load_config(CONFIGS / 'upernet/vim-tiny_upernet_4xb4-80k_cityscapes-512x1024.py')
    assert cfg.train_dataloader.dataset.type == 'CityscapesDataset'
    crop = next(step for step in cfg.train_pipeline if step.type == 'RandomCrop')
    model = cfg.model
    sizes = (crop.crop_size, model.backbone.img_size, model.data_preprocessor.size)
    assert {*sizes, model.test_cfg.crop_size} == {(512, 1024)}
    assert VisionMamba(**{k: v for k, v in model.backbone.items() if k != 'type'}).grid_size == (
        32,
        64,
    )
    assert model.decode_head.num_classes == model.auxiliary_head.num_classes == 19
    assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_iters == 80000
    assert cfg.auto_scale_lr.base_batch_size == 4 * cfg.train_dataloader.batch_size


def test_one_segmenter_config_per_direction():
    """They differ by the direction alone."""
    found, rest = set(), []
    for file in (CONFIGS / 'segmenter').glob('*.py'):
        cfg = load_config(file).to_dict()
        direction = cfg['model']['backbone'].pop('direction')
        assert file.name.startswith(f'vim-tiny-{direction.replace("_", "-")}_segmenter_')
        found.add(direction)
        rest.append(cfg)
    assert found == set(VisionMamba.DIRECTIONS)
    assert all(cfg == rest[0] for cfg in rest)
    head = rest[0]['model']['decode_head']
    assert (head['type'], head['num_layers']) == ('SegmenterMaskTransformerHead', 2)


@pytest.mark.parametrize(
    'name, stock',
    [
        ('fcn', '_base_/models/fcn_r50-d8.py'),
        ('setr-pup', '_base_/models/setr_pup.py'),
        ('setr-mla', '_base_/models/setr_mla.py'),
        ('dpt', '_base_/models/dpt_vit-b16.py'),
        ('mask2former', 'mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py'),
    ],
)
def test_dropped_in_by_the_backbone_and_channel_counts_alone(name, stock):
    def changes(ours, theirs, path=''):
        """Keys whose values differ."""
        if isinstance(ours, dict) and isinstance(theirs, dict):
            # mmengine notes the library of an inherited config as _scope_.
            keys = (ours.keys() | theirs.keys()) - {'_scope_'}
            return set().union(*(changes(ours.get(k), theirs.get(k), k) for k in keys))
        if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
            return set().union(*(changes(a, b, path) for a, b in zip(ours, theirs)))
        return set() if ours == theirs else {path}

    (file,) = (CONFIGS / 'dropin').glob(f'vim-tiny_{name}_*.py')
    ours = load_config(file).model.to_dict()
    theirs = Config.fromfile(STOCK / stock).model.to_dict()
    assert ours.pop('backbone')['type'] == 'mmvim.VisionMamba'
    theirs.pop('backbone')
    if 'neck' not in theirs:
        assert ours.pop('neck', dict(type='Feature2Pyramid'))['type'] == 'Feature2Pyramid'
    allowed = {'pretrained', 'size', 'num_classes', 'in_channels', 'embed_dims'}
    assert changes(ours, theirs) <= allowed | {'post_process_channels'}


@pytest.mark.parametrize('file', FILES, ids=IDS)
def test_scales_and_flip_are_there_for_the_test(file):
    cfg = load_config(file)
    assert cfg.tta_model.type == 'SegTTAModel'
    sizes, flips = cfg.tta_pipeline[-1].transforms[:2]
    assert [flip.prob for flip in flips] == [0.0, 1.0]
    if cfg.train_dataloader.dataset.type != 'BaseSegDataset':  # patterns come in one size
        assert [step.scale_factor for step in sizes] == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]


def test_the_test_tool_picks_scales_and_flip_up(tmp_path):
    cfg = load_config(CONFIGS / UPERNET.format('tiny', ''))
    shrink(cfg, tmp_path)
    write_images(cfg)
    init_default_scope('mmseg')
    from mmseg.registry import MODELS

    weights = tmp_path / 'weights.pth'
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), weights)
    cfg.dump(tmp_path / 'config.py')
    tool = runpy.run_path(str(ROOT / 'tools/test.py'))
    metrics = tool['main']([str(tmp_path / 'config.py'), str(weights), '--tta'])
    assert 0 <= metrics['mIoU'] <= 100
    (used,) = (tmp_path / 'work_dir').glob('*.py')
    dataset = Config.fromfile(used).test_dataloader.dataset
    assert dataset.pipeline == cfg.tta_pipeline
    assert Config.fromfile(used).model.type == 'SegTTAModel'


def test_index_lists_every_config():
    listed = set()
    imported = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    assert set(imported) == {str(p.relative_to(ROOT)) for p in CONFIGS.glob('*/metafile.yml')}
    for metafile in imported:
        for model in yaml.safe_load((ROOT / metafile).read_text())['Models']:
            assert model['Config'].endswith(f'/{model["Name"]}.py')
            listed.add(model['Config'])
    families = {Path(metafile).parent.name for metafile in imported}
    assert listed == {
        str(p.relative_to(ROOT)) for p in CONFIGS.glob('*/*.py') if p.parent.name in families
    }


def test_patterns_config_agrees_with_the_generator():
    from mmvim.datasets.patterns import CLASSES, PALETTE

    cfg = Config.fromfile(CONFIGS / '_base_/datasets/patterns_seg.py')
    assert tuple(cfg.metainfo.classes) == CLASSES
    assert [tuple(colour) for colour in cfg.metainfo.palette] == list(PALETTE)
