"""Metafiles: what the model zoo says of a config, and the part of it that follows from the config.

Their format is OpenMMLab's, which ``mim`` and the model-zoo pages read. ``Results`` hold what was
measured under the standard names of metrics (mIoU, box AP, mask AP, Top 1 Accuracy); the paper's
figures stand in items of their own, and their names end in PAPER.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mmengine.fileio
from mmengine.config import Config

from mmvim.analysis.config_flops import count_config, image_shape
from mmvim.analysis.flops import count_parameters
from mmvim.atomic_files import write_atomically
from mmvim.datasets.pipelines import type_name

PAPER = ' (paper)'
_KEYS = ('Name', 'In Collection', 'Config', 'Metadata', 'Results', 'Weights', 'Converted From')
# A folder of the data root -> what the data set is called in model zoos.
_DATASETS = {
    'ade': 'ADE20K',
    'camvid': 'CamVid',
    'cityscapes': 'Cityscapes',
    'coco': 'COCO',
    'imagenet': 'ImageNet-1k',
    'nuclei': 'nuclei',
    'patterns': 'patterns',
}


def read_metafile(path: Path) -> dict[str, Any]:
    """The content of a metafile; that of an empty one where there is no such file."""
    return dict(mmengine.fileio.load(path)) if path.is_file() else dict(Models=[])


def write_metafile(path: Path, content: Mapping[str, Any]) -> None:
    """Write a metafile in one step; the comment at its head is kept."""
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    first = next((i for i, line in enumerate(lines) if not line.startswith('#')), len(lines))
    write_atomically(path, (''.join(lines[:first]) + to_yaml(content)).encode())


def to_yaml(content: Any) -> str:
    """Metafiles' YAML, its keys in the order given."""
    text: str = mmengine.fileio.dump(content, file_format='yaml', sort_keys=False, width=100)
    return text


def entry_of(config_file: str | Path) -> dict[str, Any]:
    """What the metafile beside a config says of it; empty where nothing does.

    Args:
        config_file (str | Path): Of a family with a ``metafile.yml`` in the same folder.
    """
    config_file = Path(config_file)
    models = read_metafile(config_file.parent / 'metafile.yml').get('Models') or []
    return next((dict(model) for model in models if model['Name'] == config_file.stem), {})


def make_entry(config_file: Path, cfg: Config, **more: Any) -> dict[str, Any]:
    """The entry of a config with its Metadata up to date, keys in their order.

    Args:
        config_file (Path): Of ``cfg``. What its metafile says beside is kept.
        cfg (Config): Its default scope is the current one.
        **more (Any): Fields that are added or replaced.
    """
    entry = dict(Name=config_file.stem, Config=config_file.as_posix()) | entry_of(config_file)
    entry |= dict(Metadata=describe(cfg)) | more
    return {key: entry[key] for key in (*_KEYS, *entry) if key in entry}


def describe(cfg: Config) -> dict[str, Any]:
    """``Metadata`` of a config's model.

    Args:
        cfg (Config): Its default scope is the current one.

    Returns:
        dict[str, Any]: Parameters; FLOPs, a multiply-accumulate as one, as model zoos count them,
        of an image of Input Size (H, W), both absent where the config does not say how large its
        images are; Training Data, Training Techniques, Epochs or Iterations, Batch Size.
    """
    shape = image_shape(cfg)
    model, counts = count_config(cfg, [shape] if shape else [])
    about: dict[str, Any] = dict(Parameters=sum(count_parameters(model).values()))
    if shape:
        about |= {'FLOPs': round(counts[0].total / 2), 'Input Size': f'{shape[0]}x{shape[1]}'}
    if cfg.get('train_dataloader') is not None:
        about['Training Data'] = _training_data(cfg)
    if cfg.get('optim_wrapper') is not None:
        about['Training Techniques'] = _techniques(cfg)
    length = cfg.get('train_cfg') or {}
    about |= {
        name: length[key]
        for name, key in (('Epochs', 'max_epochs'), ('Iterations', 'max_iters'))
        if key in length
    }
    batch = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    return about | ({'Batch Size': batch} if batch else {})


def _training_data(cfg: Config) -> str:
    """One name: ``mim search --dataset`` compares it as a whole."""
    dataset = cfg.train_dataloader.dataset
    while inner := dataset.get('dataset') or (dataset.get('datasets') or [None])[0]:
        dataset = inner
    folders = Path(dataset.get('data_root') or '').parts
    return next((_DATASETS[name] for name in folders if name in _DATASETS), type_name(dataset))


def _techniques(cfg: Config) -> list[str]:
    wrapper = cfg.optim_wrapper
    decay = (wrapper.get('paramwise_cfg') or {}).get('layer_decay_rate')
    hooks = [type_name(hook) for hook in cfg.get('custom_hooks') or ()]
    augments = (cfg.model.get('train_cfg') or {}).get('augments') or ()
    named = {
        'Weight Decay': wrapper.optimizer.get('weight_decay'),
        'Layer-wise Learning Rate Decay': decay not in (None, 1.0),
        'Gradient Clipping': wrapper.get('clip_grad'),
        'Mixed Precision': type_name(wrapper) == 'AmpOptimWrapper',
        'EMA': 'EMAHook' in hooks,
    }
    return [
        type_name(wrapper.optimizer),
        *(name for name, used in named.items() if used),
        *(type_name(augment) for augment in augments),
    ]
