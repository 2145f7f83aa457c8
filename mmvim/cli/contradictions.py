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
from mmvim.models import VisionMamba, VMamba
from mmvim.models.backbones.vmamba import dims_of_stages

# Heads of mmseg that normalise a map pooled to a single pixel.
_POOLING = ('UPerHead', 'PSPHead', 'ASPPHead', 'DepthwiseSeparableASPPHead', 'APCHead', 'DMHead')
# The packages that mmengine's trackers import when a run begins.
_TRACKERS = ('tensorboard', 'wandb', 'mlflow', 'clearml', 'neptune', 'dvclive', 'aim')


def check_config(cfg: Config, splits: Sequence[str]) -> None:
    """Run every check that fits a config and the splits of its data in use.

    Raises:
        UserError: On the first contradiction.
    """
    model = cfg.get('model') or {}
    check_channels(model)
    check_class_weights(model)
    if cfg.get('default_scope') != 'mmpretrain':  # whose classifiers take it
        check_pretrained(model)
    for split in splits:
        check_classes(model, cfg.get(f'{split}_dataloader') or {}, f'{split}_dataloader')
    if 'train' in splits:
        check_batch(cfg)
        check_schedule(cfg)


def check_channels(model: Mapping[str, Any]) -> None:
    """Compare the channels that neck and heads take with those that they are given."""
    neck, given = model.get('neck'), _map_channels(model.get('backbone') or {})
    source, levels = 'the width of model.backbone', given[0] if given else None
    pyramid = given if given and len({*given}) > 1 else None
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
        levels, pyramid = neck.get(source.rpartition('.')[2]), None
    for name, head in _heads(model):
        # The extractor of regions hands channels on as they are.
        key = 'out_channels' if head.get('type') == 'SingleRoIExtractor' else 'in_channels'
        taken = head.get(key, levels)
        taken = [taken] if isinstance(taken, int) else list(taken or ())
        if pyramid is not None and taken and not isinstance(neck, list):
            _check_maps(pyramid, head.get('in_index', -1), taken, f'model.{name}.{key}')
        elif isinstance(levels, int) and set(taken) != {levels} and not isinstance(neck, list):
            raise UserError(
                f'{source} is {levels}, but model.{name}.{key} is {taken}: make them equal'
            )


def _check_maps(pyramid: Sequence[int], indices: Any, taken: Sequence[int], where: str) -> None:
    """Compare the maps that a head takes with those of a backbone of several widths."""
    indices = [indices] if isinstance(indices, int) else list(indices or ())
    if all(-len(pyramid) <= index < len(pyramid) for index in indices):
        given = [pyramid[index] for index in indices]
        if given != list(taken):
            raise UserError(
                f'model.backbone gives maps of {given} channels to in_index={indices}, but {where} '
                f'is {list(taken)}: make them equal'
            )


def _map_channels(backbone: Mapping[str, Any]) -> list[int] | None:
    """Channels of each map of a backbone of ours; None where the config does not tell."""
    family = _ours(backbone)
    if family is None:
        return None
    arch = backbone.get('arch', 'tiny' if family is VisionMamba else 'tiny_s1l8')
    arch = family.arch_zoo.get(arch.lower(), {}) if isinstance(arch, str) else arch
    indices = backbone.get('out_indices', -1 if family is VisionMamba else (0, 1, 2, 3))
    indices = list(indices) if isinstance(indices, Sequence) else [indices]
    if family is VisionMamba:
        width = arch.get('embed_dims')
        return [width] * len(indices) if isinstance(width, int) else None
    try:
        depths: Any = arch['depths']
        dims = dims_of_stages(arch['dims'], len(depths))
        return [dims[index] for index in indices]
    except (KeyError, TypeError, IndexError, ValueError):  # the build says what is wrong
        return None


def _ours(backbone: Mapping[str, Any]) -> type[VisionMamba] | type[VMamba] | None:
    """The class of a backbone of ours; None for others."""
    kind = backbone.get('type')
    families = (VisionMamba, VMamba)
    return next((f for f in families if kind in (f, f.__name__, f'mmvim.{f.__name__}')), None)


def _heads(model: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and settings of all heads, and of what extracts their regions."""
    inner = {f'roi_head.{name}': part for name, part in (model.get('roi_head') or {}).items()}
    for name, part in {**model, **inner}.items():
        for one in part if isinstance(part, list) else [part]:
            if isinstance(one, Mapping) and name.endswith(('head', 'extractor')):
                yield name, one


def check_class_weights(model: Mapping[str, Any]) -> None:
    """Compare the lengths of ``class_weight`` with ``num_classes`` of the head.

    A softmax over boxes or queries has one class more, the background.
    """
    for name, head in _heads(model):
        classes: Any = None if head.get('out_channels') else head.get('num_classes')
        losses = [(key, loss) for key, loss in head.items() if key.startswith('loss')]
        for key, part in losses if classes is not None else ():
            for loss in part if isinstance(part, list) else [part or {}]:
                more = key == 'loss_cls' and not loss.get('use_sigmoid')
                weights = loss.get('class_weight')
                if isinstance(weights, (list, tuple)) and len(weights) != classes + more:
                    raise UserError(
                        f'model.{name}.{key}.class_weight has {len(weights)} numbers for '
                        f'{classes} classes{" and the background" if more else ""}: give '
                        f'{classes + more}'
                    )


def check_pretrained(model: Mapping[str, Any]) -> None:
    """Refuse the ``pretrained`` of older configs, which our backbones do not take."""
    backbone = model.get('backbone') or {}
    for where, node in (('model', model), ('model.backbone', backbone)):
        family = _ours(backbone)
        if node.get('pretrained') is not None and family is not None:
            kind = 'PretrainedVim' if family is VisionMamba else 'PretrainedVMamba'
            raise UserError(
                f'{where}.pretrained={node["pretrained"]!r} is not how {family.__name__} gets '
                f"weights: set model.backbone.init_cfg=dict(type='mmvim.{kind}', checkpoint=...)"
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
    classes = meta.get('thing_classes', meta.get('classes'))
    for name, head in _heads(model):
        found = head.get('num_classes') if name.endswith(('bbox_head', 'mask_head')) else None
        # A single class is a string.
        if found and isinstance(classes, (list, tuple)) and found != len(classes):
            raise UserError(
                f'model.{name} has num_classes={found}, but the data of {where} have '
                f'{len(classes)} classes: set num_classes, or metainfo.classes of the data set'
            )


def check_batch(cfg: Config) -> None:
    """Refuse one image a batch where batch norm sees one number a channel of it."""
    alone = ('BN', 'SyncBN') if cfg.get('launcher', 'none') == 'none' else ('BN',)
    for _, head in _heads(cfg.get('model') or {}):
        pools = type_name(head) in _POOLING and (head.get('norm_cfg') or {}).get('type') in alone
        if pools and cfg.train_dataloader.get('batch_size') == 1:
            raise UserError(
                f'{type_name(head)} normalises single pixels over the batch, of which '
                'train_dataloader.batch_size=1 gives no statistics: take 2 or more, or another '
                'norm_cfg'
            )


def check_schedule(cfg: Config) -> None:
    """Compare what counts epochs with what counts iterations."""
    known = dict(EpochBasedTrainLoop=True, IterBasedTrainLoop=False)
    by_epoch = known.get(type_name(cfg.train_cfg), cfg.train_cfg.get('by_epoch'))
    sampler = type_name(cfg.train_dataloader.get('sampler'))
    schedulers = cfg.get('param_scheduler') or []
    if isinstance(schedulers, Mapping):
        schedulers = [schedulers] if 'type' in schedulers else []  # else one list an optimizer
    epochs = [scheduler.get('by_epoch', True) for scheduler in schedulers]
    for number, scheduler in enumerate(schedulers if by_epoch is False else ()):
        acts = scheduler.get('convert_to_iter_based') or 'Plateau' in type_name(scheduler)
        if epochs[number] and not acts:
            raise UserError(
                f'param_scheduler.{number} counts epochs (by_epoch=True), but train_cfg counts '
                'iterations: it would never act; set its by_epoch=False, and begin and end to match'
            )
    if by_epoch and 'Infinite' in sampler:
        raise UserError(
            f'train_cfg counts epochs, but with train_dataloader.sampler={sampler} the first one '
            "never ends: take dict(type='DefaultSampler', shuffle=True), or IterBasedTrainLoop"
        )
    saving, warning = (cfg.get('default_hooks') or {}).get('checkpoint', {}), None
    if by_epoch is False and saving is not None and saving.get('by_epoch', True):
        warning = (
            'train_cfg counts iterations, but default_hooks.checkpoint counts epochs: nothing is '
            'saved before the end; set its by_epoch=False, and interval to match'
        )
    elif by_epoch and epochs and not any(epochs):
        ends = ', '.join(str(scheduler.get('end')) for scheduler in schedulers)
        warning = (
            'train_cfg counts epochs, but every param_scheduler counts iterations '
            f'(by_epoch=False; their ends: {ends})'
        )
    if warning:
        print(f'warning: {warning}', file=sys.stderr)


def check_trackers(cfg: Config) -> None:
    """Refuse a visualizer that writes for a tracker whose package is not installed."""
    backends = (cfg.get('visualizer') or {}).get('vis_backends') or ()
    for backend in [backends] if isinstance(backends, Mapping) else backends:
        package = type_name(backend).removesuffix('VisBackend').lower()
        if package in _TRACKERS and importlib.util.find_spec(package) is None:
            raise UserError(
                f'visualizer.vis_backends has {type_name(backend)}, which needs {package}, and '
                f'that is not installed: pip install {package}, or take the backend out'
            )
