"""Check that the data a config names is there, before anything is built."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config

from mmvim.errors import UserError


def check_data(cfg: Config, splits: Sequence[str]) -> None:
    """Fail on the first folder or annotation file of the splits in use that does not exist.

    Paths with a scheme (``s3://``) and data sets with ``backend_args`` are left to their backend.

    Args:
        cfg: The config.
        splits: Of ``'train'``, ``'val'``, ``'test'``; one without a data loader is skipped.

    Raises:
        UserError: Names the path, the key it comes from and how to change it.
    """
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        if loader is None:
            continue
        for key, dataset in _datasets(loader.get('dataset'), f'{split}_dataloader.dataset'):
            _check_dataset(cfg, key, dataset)
        for key, metric in _metrics(cfg.get(f'{split}_evaluator'), f'{split}_evaluator'):
            ann_file = metric.get('ann_file') or ''
            if _is_local(ann_file, metric) and not os.path.isfile(ann_file):
                raise UserError(_absent(cfg, f'{key}.ann_file', ann_file, ann_file))


def _datasets(node: Any, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Data sets at or under ``node``, wrappers (repeat, concatenate, mosaic ...) opened."""
    if isinstance(node, Mapping):
        yield key, node
        yield from _datasets(node.get('dataset'), f'{key}.dataset')
        inner = node.get('datasets')
        if isinstance(inner, Sequence) and not isinstance(inner, str):
            for index, dataset in enumerate(inner):
                yield from _datasets(dataset, f'{key}.datasets.{index}')


def _metrics(node: Any, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(node, Mapping):
        yield key, node
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for index, metric in enumerate(node):
            yield from _metrics(metric, f'{key}.{index}')


def _check_dataset(cfg: Config, key: str, dataset: Mapping[str, Any]) -> None:
    root = dataset.get('data_root') or ''
    if '://' in str(root) or dataset.get('backend_args'):
        return
    if root and not os.path.isdir(root):
        raise UserError(_absent(cfg, f'{key}.data_root', root, root))
    prefix = dataset.get('data_prefix') or {}
    folders = prefix.items() if isinstance(prefix, Mapping) else [(None, prefix)]
    for name, folder in folders:
        where = os.path.join(root, folder) if isinstance(folder, str) else ''
        if folder and _is_local(where, dataset) and not os.path.exists(where):
            entry = f'{key}.data_prefix' if name is None else f'{key}.data_prefix.{name}'
            raise UserError(_absent(cfg, entry, folder, where))
    ann_file = dataset.get('ann_file')
    if isinstance(ann_file, str) and ann_file:
        where = os.path.join(root, ann_file)
        if _is_local(where, dataset) and not os.path.exists(where):
            raise UserError(_absent(cfg, f'{key}.ann_file', ann_file, where))


def _is_local(path: str, owner: Mapping[str, Any]) -> bool:
    return bool(path) and '://' not in path and not owner.get('backend_args')


def _absent(cfg: Config, key: str, value: str, path: str) -> str:
    same = [other for other in _keys_with(cfg, key.rpartition('.')[2], value) if other != key]
    keys = ' '.join(f'{entry}=...' for entry in [key, *same])
    return (
        f'{key} is {value!r}, but {os.path.abspath(path)} does not exist: prepare the data as '
        f'"Data" in the README says, or give its place with --cfg-options {keys}'
    )


def _keys_with(cfg: Config, name: str, value: str) -> Iterator[str]:
    """Keys of the other splits that hold the same path, which will have to change with it."""
    for split in ('train', 'val', 'test'):
        loader = cfg.get(f'{split}_dataloader') or {}
        for key, dataset in _datasets(loader.get('dataset'), f'{split}_dataloader.dataset'):
            if dataset.get(name) == value:
                yield f'{key}.{name}'
