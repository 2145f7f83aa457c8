"""Every detection config: builds as it is, and trains and predicts scaled down by size alone."""

import copy
import importlib.util
import json
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

pytest.importorskip('mmdet')

from repository import CONFIGS, load_config
from scaled_down import confine
from scaled_down_detection import shrink, write_coco

from mmvim.cli.contradictions import check_channels
from mmvim.engine.cpu_processes import has_amp_accelerator
from mmvim.errors import UserError
from mmvim.models import VisionMamba
from mmvim.models.pos_embed import resize_pos_embed

FILES = sorted((CONFIGS / 'vitdet').glob('*.py'))
IDS = [path.stem for path in FILES]
STOCK = Path(importlib.util.find_spec('mmdet').origin).parent / '.mim' / 'configs'
VITDET = 'vitdet_{}_vim-{}_lsj-100e_coco{}'
# One config of every detector.
KINDS = [
    *(VITDET.format(kind, 'tiny', '') for kind in ('mask-rcnn', 'cascade-mask-rcnn')),
    *(path.stem for path in FILES if not path.stem.startswith('vitdet')),
]


def load(name):
    return load_config(f'vitdet/{name}.py')


@pytest.fixture(autouse=True)
def in_mmdet():
    """The scope that a runner would leave behind ends with the test."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


@pytest.mark.operators
@pytest.mark.parametrize(
    'file', [pytest.param(path, id=path.stem) for path in sorted((CONFIGS / 'nuclei').glob('*.py'))]
)
def test_a_detector_of_nuclei_trains_a_step_and_predicts(file, tmp_path):
    cfg = load_config(file)
    confine(cfg, tmp_path, 2, (), 1)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.ann_file = str(tmp_path / 'data' / cfg.test_dataloader.dataset.ann_file)
    write_coco(cfg)
    for annotations in (tmp_path / 'data' / 'annotations').glob('*.json'):
        content = json.loads(annotations.read_text())
        content['categories'] = [dict(id=1, name='nucleus')]
        for annotation in content['annotations']:
            annotation['category_id'] = 1
        annotations.write_text(json.dumps(content))
    torch.manual_seed(0)
    runner = Runner.from_cfg(cfg)
    reached = set()
    for key, param in runner.model.named_parameters():
        param.register_hook(lambda grad, key=key: reached.add(key))
    model = runner.train()
    assert reached == {key for key, _ in model.named_parameters()}
    metrics = runner.test()
    assert {'coco/segm_mAP', 'coco/bbox_mAP', 'coco/nucleus_precision'} <= metrics.keys()


@pytest.mark.operators
@pytest.mark.parametrize(
    'name',
    [
        pytest.param(
            name, marks=[pytest.mark.stack] * (name == VITDET.format('mask-rcnn', 'tiny', ''))
        )
        for name in IDS
    ],
)
def test_trains_a_step_and_predicts(name, tmp_path):
    cfg = load(name)
    amp = cfg.optim_wrapper.type == 'AmpOptimWrapper'
    shrink(cfg, tmp_path)
    write_coco(cfg)
    torch.manual_seed(0)
    np.random.seed(0)
    runner = Runner.from_cfg(cfg)
    reached, dtypes, sizes = set(), set(), []
    for key, param in runner.model.named_parameters():
        param.register_hook(lambda grad, key=key: reached.add(key))
    if amp and not has_amp_accelerator():
        # mmcv's NMS takes scores in half precision, but not on a CPU.
        runner.model.rpn_head.register_forward_hook(
            lambda module, args, output: tuple([x.float() for x in maps] for maps in output)
        )
    runner.model.backbone.layers[-1].mixer.register_forward_hook(
        lambda module, args, output: dtypes.add(output.dtype)
    )
    runner.model.backbone.register_forward_hook(
        lambda module, args, output: sizes.append(tuple(args[0].shape))
    )
    model = runner.train()
    losses = runner.message_hub.get_scalar('train/loss').data[0]
    assert len(losses) == 1 and np.isfinite(losses).all()
    assert reached == {key for key, _ in model.named_parameters()}
    assert dtypes == {torch.float16 if amp else torch.float32}
    # The box of zero area is gone.
    info = runner.train_loop.dataloader.dataset.get_data_info(0)
    assert [instance['bbox'] for instance in info['instances']] == [[10, 5, 54, 45]]
    metrics = runner.test()
    assert 0 <= metrics['coco/bbox_mAP'] <= 1
    assert ('coco/segm_mAP' in metrics) == bool({'roi_head', 'panoptic_head'} & {*cfg.model})
    # One batch of training, two of the test: two images of different sizes, an empty one.
    assert [shape[0] for shape in sizes] == [2, 2, 1]


def samples(model, boxes):
    """A batch of two images of different sizes through the preprocessor, with these boxes."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    inputs, data_samples = [], []
    for number, (size, found) in enumerate(zip(((40, 64), (56, 48)), boxes)):
        generator = torch.Generator().manual_seed(number)
        inputs.append(torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8))
        masks = np.zeros((len(found), *size), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, found):
            mask[y1:y2, x1:x2] = 1
        sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1, 1)))
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor(found, dtype=torch.float32).reshape(-1, 4),
            labels=torch.zeros(len(found), dtype=torch.long),
            masks=BitmapMasks(masks, *size),
        )
        data_samples.append(sample)
    return model.data_preprocessor(dict(inputs=inputs, data_samples=data_samples), training=True)


@pytest.mark.operators
@pytest.mark.parametrize('boxes', [([[8, 6, 40, 36]], []), ([], [])], ids=['one empty', 'both'])
@pytest.mark.parametrize('name', KINDS)
def test_empty_ground_truth(name, boxes, tmp_path):
    """Finite losses, and a gradient for every parameter, or processes would wait for each other."""
    cfg = load(name)
    shrink(cfg, tmp_path)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).train()
    model.init_weights()
    data = samples(model, boxes)
    losses = model.loss(data['inputs'], data['data_samples'])
    total, logged = model.parse_losses(losses)
    assert torch.isfinite(total)
    if boxes == ([], []):
        assert all(value == 0 for key, value in logged.items() if 'bbox' in key or 'mask' in key)
    total.backward()
    for key, param in model.named_parameters():
        assert param.grad is not None and torch.isfinite(param.grad).all(), key


def test_builds_at_full_size():
    """Every model as it is; each once, since the recipes of a size share theirs."""
    seen = []
    for name in IDS:
        cfg = load(name)
        model = cfg.model
        model.backbone.rope = 'none'  # has no parameters
        if model in seen:
            continue
        seen.append(copy.deepcopy(model))
        built = MODELS.build(model)
        assert built.backbone.grid_size == (64, 64)
        widths = {'tiny': 192, 'small': 384, 'base': 768}
        in_channels = model.neck.in_channels
        assert in_channels in (widths[model.backbone.arch], [widths[model.backbone.arch]])
    assert len(seen) == 11


@pytest.mark.parametrize('name', IDS)
def test_wrong_channels_are_found_before_anything_is_built(name):
    check_channels(load(name).model)
    cfg = load(name)
    cfg.model.backbone.arch = dict(embed_dims=96, num_layers=24)
    with pytest.raises(UserError, match=r'gives maps of \[96\] .* says \[\d+\]'):
        check_channels(cfg.model)
    cfg = load(name)
    cfg.model.neck.out_channels = 128
    if 'DETR' not in cfg.model.type:  # whose transformer says embed_dims
        with pytest.raises(UserError, match=r'out_channels is 128, .*_channels is \[?256'):
            check_channels(cfg.model)


@pytest.mark.parametrize('form', ['', '_rope'])
@pytest.mark.parametrize('size, layer_decay', [('tiny', 0.837), ('small', 0.837), ('base', 0.7)])
@pytest.mark.parametrize('kind', ['mask-rcnn', 'cascade-mask-rcnn'])
def test_published_recipe(kind, size, layer_decay, form):
    """The figures of the published COCO recipe, as the config resolves."""
    cfg = load(VITDET.format(kind, size, form))
    wrapper = cfg.optim_wrapper
    assert (wrapper.type, wrapper.loss_scale) == ('AmpOptimWrapper', 'dynamic')
    optimizer = wrapper.optimizer
    assert (optimizer.type, optimizer.lr) == ('AdamW', 1e-4)
    assert (optimizer.weight_decay, optimizer.betas) == (0.1, (0.9, 0.999))
    assert wrapper.constructor == 'mmvim.LayerDecayOptimWrapperConstructor'
    as_published = dict(as_published='detection') if form else {}
    assert wrapper.paramwise_cfg == dict(layer_decay_rate=layer_decay, **as_published)
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.type, warm_up.begin, warm_up.end, warm_up.by_epoch) == (
        'LinearLR',
        0,
        250,
        False,
    )
    assert (steps.type, steps.begin, steps.by_epoch, steps.gamma) == ('MultiStepLR', 0, False, 0.1)
    assert steps.milestones == [163889, 177546]
    assert cfg.train_cfg.type == 'IterBasedTrainLoop'
    assert cfg.train_cfg.max_iters == steps.end == 184375
    assert cfg.auto_scale_lr.base_batch_size == 8 * cfg.train_dataloader.batch_size == 64

    transforms = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    jitter = transforms['RandomResize']
    assert (jitter.scale, jitter.ratio_range) == ((1024, 1024), (0.1, 2.0))
    assert transforms['RandomCrop'].crop_size == (1024, 1024)
    assert transforms['RandomFlip'].prob == 0.5
    resize = next(s for s in cfg.test_dataloader.dataset.pipeline if s.type == 'Resize')
    assert (resize.scale, resize.keep_ratio) == ((1024, 1024), True)
    assert cfg.test_dataloader == cfg.val_dataloader
    assert cfg.train_dataloader.dataset.type == 'CocoDataset'
    assert cfg.test_evaluator.metric == ['bbox', 'segm']

    model, backbone = cfg.model, cfg.model.backbone
    assert model.data_preprocessor.pad_size_divisor == backbone.img_size == 1024
    assert (backbone.arch, backbone.drop_path_rate) == (size, 0.1)
    assert (backbone.cls_token, backbone.out_norm, backbone.tap) == ('none', 'none', 'residual')
    assert backbone.out_indices == -1
    assert backbone.rope == ('both' if form else 'none')
    norm_cfg = dict(type='mmvim.LN2d', eps=1e-6)
    assert (model.neck.type, model.neck.norm_cfg) == ('mmvim.SimpleFPN', norm_cfg)
    assert model.rpn_head.num_convs == 2
    assert model.train_cfg.rpn.allowed_border == -1
    heads = model.roi_head.bbox_head
    heads = heads if isinstance(heads, list) else [heads]
    assert len(heads) == (3 if kind == 'cascade-mask-rcnn' else 1)
    for head in heads:
        assert (head.type, head.norm_cfg) == ('Shared4Conv1FCBBoxHead', norm_cfg)
        assert head.reg_class_agnostic == (len(heads) == 3)
    mask_head = model.roi_head.mask_head
    assert (mask_head.type, mask_head.num_convs, mask_head.norm_cfg) == ('FCNMaskHead', 4, norm_cfg)
    if len(heads) == 3:
        ious = [stage.assigner.pos_iou_thr for stage in model.train_cfg.rcnn]
        assert ious == [0.5, 0.6, 0.7]


@pytest.mark.parametrize('kind', ['mask-rcnn', 'cascade-mask-rcnn'])
def test_learning_rate_over_the_run(kind):
    """Warm-up from a thousandth, then 1, 0.1 and 0.01 of the rate."""
    from mmengine.optim import OptimWrapper
    from mmengine.registry import PARAM_SCHEDULERS

    cfg = load(VITDET.format(kind, 'tiny', ''))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    wrapper = OptimWrapper(optimizer)
    schedulers = [
        PARAM_SCHEDULERS.build(entry, default_args=dict(optimizer=wrapper))
        for entry in cfg.param_scheduler
    ]
    rates, optimizer._opt_called = {}, True  # else torch warns that nothing is optimised
    for step in range(184375):
        rates[step] = optimizer.param_groups[0]['lr']
        for scheduler in schedulers:
            scheduler.step()
    assert rates[0] == pytest.approx(1e-3)
    assert rates[249] == pytest.approx(1.0) == rates[163888]
    assert rates[163889] == pytest.approx(0.1) == rates[177545]
    assert rates[177546] == pytest.approx(0.01) == rates[184374]


def test_images_of_many_sizes_in_the_1x_recipe():
    cfg = load('vitdet_mask-rcnn_vim-tiny_ms-1x_coco')
    transforms = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    scales = transforms['RandomChoiceResize'].scales
    assert scales[0] == (1333, 480) and scales[-1] == (1333, 800) and len(scales) == 11
    resize = next(s for s in cfg.test_dataloader.dataset.pipeline if s.type == 'Resize')
    assert resize.scale == (1333, 800)
    assert cfg.model.data_preprocessor.pad_size_divisor == 32
    assert cfg.train_cfg.max_epochs == 12


@pytest.mark.parametrize(
    'name, stock, neck',
    [
        ('retinanet', 'retinanet/retinanet_r50_fpn_1x_coco.py', 'mmvim.SimpleFPN'),
        ('fcos', 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', 'mmvim.SimpleFPN'),
        ('deformable', 'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py', 'ChannelMapper'),
    ],
)
def test_dropped_in_by_backbone_and_neck_alone(name, stock, neck):
    (ours,) = [load(stem).model.to_dict() for stem in IDS if stem.startswith(name)]
    theirs = Config.fromfile(STOCK / stock).model.to_dict()
    assert ours['backbone']['type'] == 'mmvim.VisionMamba'
    assert ours['neck']['type'] == neck
    strides = [8, 16, 32, 64, 128]
    if neck == 'mmvim.SimpleFPN':
        head = ours['bbox_head']
        assert head.get('strides', head.get('anchor_generator', {}).get('strides')) == strides
        assert [*ours['neck']['out_strides'], 64, 128] == strides
        assert ours['neck']['num_outs'] == len(strides)
    else:
        assert {key for key in ours['neck'] if ours['neck'][key] != theirs['neck'][key]} == {
            'in_channels'
        }
    changed = ('backbone', 'neck', *(['data_preprocessor'] if name == 'fcos' else []))
    for key in (*changed, '_scope_'):
        ours.pop(key, None)
        theirs.pop(key, None)
    assert ours == theirs


def test_masks_by_queries_over_the_simple_feature_pyramid():
    """Mask2Former, in which mmdet has no neck: the pyramid makes the four maps of a ResNet."""
    (ours,) = [load(stem).model.to_dict() for stem in IDS if stem.startswith('mask2former')]
    stock = 'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py'
    theirs = Config.fromfile(STOCK / stock).model.to_dict()
    neck = ours.pop('neck')
    assert neck['type'] == 'mmvim.SimpleFPN'
    assert ours['panoptic_head']['in_channels'] == [neck['out_channels']] * neck['num_outs']
    assert ours['panoptic_head']['strides'] == [4, 8, 16, 32]
    for model in (ours, theirs):
        del model['backbone'], model['panoptic_head']['in_channels']
        model.pop('_scope_', None)
    assert ours == theirs


@pytest.mark.parametrize('task', ['segmentation', 'classification'])
def test_starts_from_the_backbone_of_another_task(task, tmp_path):
    """Blocks are equal, the position embedding is resized, what has no use is left out."""
    cfg = load(VITDET.format('mask-rcnn', 'tiny', ''))
    shrink(cfg, tmp_path)
    arch = cfg.model.backbone.arch
    if task == 'segmentation':
        options = dict(cls_token='none', out_norm='none', out_indices=[5, 11, 17, 23])
        source, head = VisionMamba(arch, img_size=32, **options), 'decode_head.conv_seg.bias'
    else:
        options = dict(cls_token='middle', out_norm='last', out_type='cls_token')
        source, head = VisionMamba(arch, img_size=32, **options), 'head.fc.bias'
    weights = {f'backbone.{key}': value for key, value in source.state_dict().items()}
    torch.save(dict(state_dict=weights | {head: torch.zeros(3)}), tmp_path / 'weights.pth')
    cfg.model.backbone.init_cfg = dict(
        type='mmvim.PretrainedVim', checkpoint=str(tmp_path / 'weights.pth')
    )
    model = MODELS.build(cfg.model)
    model.init_weights()
    loaded = dict(model.backbone.named_parameters())
    resized = resize_pos_embed(source.pos_embed, (2, 2), (4, 4), 'bicubic')
    torch.testing.assert_close(loaded.pop('pos_embed'), resized)
    assert loaded and all(torch.equal(p, source.state_dict()[key]) for key, p in loaded.items())


def test_needs_no_other_library_than_mmdet():
    """With mmseg and mmpretrain out of reach."""
    file = CONFIGS / 'vitdet' / f'{VITDET.format("mask-rcnn", "tiny", "")}.py'
    code = f"""
import sys
sys.modules.update(mmseg=None, mmpretrain=None)
from mmengine.config import Config
cfg = Config.fromfile({str(file)!r})
from mmengine.registry import MODELS, init_default_scope
init_default_scope(cfg.default_scope)
model = MODELS.build(cfg.model)
import torch
with torch.no_grad():
    print([tuple(x.shape) for x in model.extract_feat(torch.zeros(1, 3, 64, 96))])
"""
    found = forked.run(code)
    assert found.returncode == 0, found.stderr
    shapes = [(1, 256, 64 // s, 96 // s) for s in (4, 8, 16, 32)] + [(1, 256, 1, 2)]
    assert found.stdout.strip().endswith(str(shapes))
