"""What a config says twice and differently, told before anything is built.

What only the data can tell is told when they are loaded, by :mod:`mmvim.datasets.checked_loading`.
"""

import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config

from mmvim.cli.option_keys import resolve
from mmvim.datasets.pipelines import pipeline_owner, type_name
from mmvim.errors import UserError
from mmvim.models import VisionMamba

# Heads of mmseg that normalise a map pooled to a single pixel.
_POOLING = ('UPerHead', 'PSPHead', 'ASPPHead', 'DepthwiseSeparableASPPHead', 'APCHead', 'DMHead')

# The packages that mmengine's trackers import when a run begins.
_TRACKERS = {
    'TensorboardVisBackend': 'tensorboard',
    'WandbVisBackend': 'wandb',
    'MLflowVisBackend': 'mlflow',
    'ClearMLVisBackend': 'clearml',
    'NeptuneVisBackend': 'neptune',
    'DVCLiveVisBackend': 'dvclive',
    'AimVisBackend': 'aim',
}


def check_config(cfg: Config, splits: Sequence[str]) -> None:
    """Run every check that fits a config and the splits of its data in use.

    Raises:
        UserError: On the first contradiction.
    """
    model = cfg.get('model') or {}
    check_channels(model)
    if cfg.get('default_scope') != 'mmpretrain':  # whose classifiers take it
        check_pretrained(model)
    check_class_weights(model)
    for split in splits:
        if cfg.get(f'{split}_dataloader') is not None:
            check_classes(model, cfg[f'{split}_dataloader'], f'{split}_dataloader')
    if 'train' in splits:
        check_batch(cfg)
        check_schedule(cfg)


def check_channels(model: Mapping[str, Any]) -> None:
    """Compare the channels that neck and heads take with those that they are given."""
    neck, given = model.get('neck'), _map_channels(model.get('backbone') or {})
    source, levels = 'the width of model.backbone', given[0] if given else None
    if isinstance(neck, Mapping):
        key = 'embed_dim' if 'embed_dim' in neck else 'in_channels'
        taken = neck.get(key)
        if key == 'embed_dim':  # mmseg's Feature2Pyramid hands channels on as they are
            taken = [taken] * len(neck.get('rescales', (4, 2, 1, 0.5)))
        taken = [taken] if isinstance(taken, int) else taken
        if given is not None and taken is not None and list(taken) != given:
            raise UserError(
                f'model.backbone gives maps of {given} channels, but model.neck.{key} says '
                f'{taken}: make arch and out_indices of the backbone and {key} of the neck agree'
            )
        source = 'model.neck.embed_dim' if key == 'embed_dim' else 'model.neck.out_channels'
        levels = neck.get(source.rpartition('.')[2])
    elif neck is not None:
        return
    for name, channels in _level_readers(model):
        if isinstance(levels, int) and set(channels) != {levels}:
            raise UserError(
                f'{source} is {levels}, but model.{name} is {channels}: make them equal'
            )


def _map_channels(backbone: Mapping[str, Any]) -> list[int] | None:
    """Channels of each map of a Vision Mamba; None where the config does not tell."""
    if not _is_vim(backbone):
        return None
    arch, indices = backbone.get('arch', 'tiny'), backbone.get('out_indices', -1)
    arch = VisionMamba.arch_zoo.get(arch.lower(), {}) if isinstance(arch, str) else arch
    width = arch.get('embed_dims')
    if not isinstance(width, int):
        return None
    return [width] * (len(indices) if isinstance(indices, Sequence) else 1)


def _is_vim(backbone: Mapping[str, Any]) -> bool:
    return backbone.get('type') in ('mmvim.VisionMamba', 'VisionMamba', VisionMamba)


def _level_readers(model: Mapping[str, Any]) -> Iterator[tuple[str, list[int]]]:
    """Name and channels of all heads, and of the extractor that hands channels on as they are."""
    inner = {f'roi_head.{name}': part for name, part in (model.get('roi_head') or {}).items()}
    for name, part in {**model, **inner}.items():
        for one in part if isinstance(part, list) else [part]:
            if not isinstance(one, Mapping):
                continue
            is_extractor = one.get('type') == 'SingleRoIExtractor'
            key = 'out_channels' if is_extractor else 'in_channels'
            if one.get(key) is not None and (is_extractor or name.endswith('head')):
                yield f'{name}.{key}', [one[key]] if isinstance(one[key], int) else list(one[key])


def check_pretrained(model: Mapping[str, Any]) -> None:
    """Refuse the ``pretrained`` of older configs, which Vision Mamba does not take."""
    for where, node in (('model', model), ('model.backbone', model.get('backbone') or {})):
        if node.get('pretrained') is not None and _is_vim(model.get('backbone') or {}):
            raise UserError(
                f'{where}.pretrained={node["pretrained"]!r} is not how Vision Mamba gets weights: '
                "set model.backbone.init_cfg=dict(type='mmvim.PretrainedVim', checkpoint=...)"
            )


def check_class_weights(node: Any, where: str = 'model') -> None:
    """Compare the lengths of ``class_weight`` with ``num_classes``, in all heads of a model.

    A softmax over boxes or queries has one class more, the background.
    """
    for key, part in node.items() if isinstance(node, Mapping) else enumerate(node):
        if not isinstance(part, (list, tuple, Mapping)):
            continue
        check_class_weights(part, f'{where}.{key}')
        is_loss = isinstance(node, Mapping) and str(key).startswith('loss')
        head = dict(node) if is_loss else {}
        losses: Sequence[Any] = part if isinstance(part, list) else [part]
        for loss in losses:
            weights = loss.get('class_weight') if isinstance(loss, Mapping) else None
            classes = None if head.get('out_channels') else head.get('num_classes')
            if classes is None or not isinstance(weights, (list, tuple)):
                continue
            more = key == 'loss_cls' and not loss.get('use_sigmoid')
            if len(weights) != classes + more:
                raise UserError(
                    f'{where}.{key}.class_weight has {len(weights)} numbers, but num_classes is '
                    f'{classes}{", and the background is one more" if more else ""}: give '
                    f'{classes + more}'
                )


def check_classes(model: Mapping[str, Any], loader: Mapping[str, Any], where: str) -> None:
    """Compare ``num_classes`` of a detector's heads with the classes of its data."""
    try:
        dataset = pipeline_owner(loader.get('dataset'), where)
    except UserError:  # what has no pipeline is left to the build
        return
    meta = dataset.get('metainfo') or {}
    for type_ in resolve(dataset.get('type')) if 'classes' not in meta else ():
        meta = getattr(type_, 'METAINFO', {})
    named = meta.get('thing_classes', meta.get('classes'))
    if not isinstance(named, (list, tuple)):  # a single class is a string
        return
    heads = {**model, **(model.get('roi_head') or {})}
    for name in ('bbox_head', 'mask_head'):
        for head in heads[name] if isinstance(heads.get(name), list) else [heads.get(name) or {}]:
            if head.get('num_classes', len(named)) != len(named):
                raise UserError(
                    f'the {name} has num_classes={head["num_classes"]}, but the data of {where} '
                    f'have {len(named)} classes: set num_classes, or metainfo.classes of the data '
                    'set'
                )


def check_batch(cfg: Config) -> None:
    """Refuse one image a batch where batch norm sees one number a channel of it."""
    size, model = cfg.train_dataloader.get('batch_size'), cfg.get('model') or {}
    processes = 2 if cfg.get('launcher', 'none') != 'none' else 1
    heads = [part for name, part in model.items() if name.endswith('head') and part]
    for head in [one for part in heads for one in (part if isinstance(part, list) else [part])]:
        norm = (head.get('norm_cfg') or {}).get('type')
        alone = norm == 'BN' or (norm == 'SyncBN' and processes == 1)
        if size == 1 and alone and type_name(head) in _POOLING:
            raise UserError(
                f'{type_name(head)} normalises single pixels over the batch ({norm}), which '
                'train_dataloader.batch_size=1 leaves no statistics: take 2 or more, or another '
                'norm_cfg'
            )


def check_schedule(cfg: Config) -> None:
    """Compare what counts epochs with what counts iterations."""
    loop, sampler = cfg.train_cfg, type_name(cfg.train_dataloader.get('sampler'))
    known = dict(EpochBasedTrainLoop=True, IterBasedTrainLoop=False)
    by_epoch = known.get(type_name(loop), loop.get('by_epoch'))
    if by_epoch is None:
        return
    if by_epoch and 'Infinite' in sampler:
        raise UserError(
            f'train_cfg counts epochs, but with train_dataloader.sampler={sampler} the first one '
            "never ends: take dict(type='DefaultSampler', shuffle=True), or IterBasedTrainLoop"
        )
    schedulers = cfg.get('param_scheduler') or []
    if isinstance(schedulers, Mapping):
        schedulers = [schedulers] if 'type' in schedulers else []  # else one list an optimizer
    for number, scheduler in enumerate(schedulers):
        acts = scheduler.get('convert_to_iter_based') or 'Plateau' in type_name(scheduler)
        if not (by_epoch or acts) and scheduler.get('by_epoch', True):
            raise UserError(
                f'param_scheduler.{number} counts epochs (by_epoch=True), but train_cfg counts '
                'iterations: it would never act; set its by_epoch=False, and begin and end to match'
            )
    if by_epoch and schedulers and not any(s.get('by_epoch', True) for s in schedulers):
        ends = ', '.join(str(scheduler.get('end')) for scheduler in schedulers)
        print(
            'warning: train_cfg counts epochs, but every param_scheduler counts iterations '
            f'(by_epoch=False; their ends: {ends})',
            file=sys.stderr,
        )
    total = loop.get('max_epochs' if by_epoch else 'max_iters')
    if cfg.get('val_cfg') is not None and total and loop.get('val_interval', 1) > total:
        print(
            f'warning: nothing is validated: train_cfg.val_interval={loop.val_interval} is beyond '
            f'the end at {total}',
            file=sys.stderr,
        )


def check_trackers(cfg: Config) -> None:
    """Refuse a visualizer that writes for a tracker whose package is not installed."""
    backends = (cfg.get('visualizer') or {}).get('vis_backends') or ()
    for backend in [backends] if isinstance(backends, Mapping) else backends:
        package = _TRACKERS.get(type_name(backend))
        if package is not None and importlib.util.find_spec(package) is None:
            raise UserError(
                f'visualizer.vis_backends has {type_name(backend)}, which needs {package}, and '
                f'that is not installed: pip install {package}, or take the backend out'
            )
