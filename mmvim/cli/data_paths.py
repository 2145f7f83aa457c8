"""Check that the data a config names is there, before anything is built."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmvim.errors import UserError


def check_data(cfg: Config, splits: Sequence[str]) -> None:
    """Fail on the first folder or annotation file of the splits in use that is not there.

    Paths with a scheme (``s3://``) and data sets with ``backend_args`` are left to their backend.

    Args:
        cfg (Config): The config.
        splits (Sequence[str]): Of ``'train'``, ``'val'``, ``'test'``; one without a data loader
            is skipped.

    Raises:
        UserError: Names the path, the key it comes from and how to change it.
    """
    for split in splits:
        for key, value, path, suffix in _paths(cfg, split):
            if '://' in path:
                continue
            what = 'does not exist'
            if os.path.isdir(path) and next(Path(path).rglob(f'*{suffix}'), None) is None:
                what = f'holds no *{suffix}'
            elif os.path.isdir(path) or (os.path.isfile(path) and not key.endswith('data_root')):
                continue
            # The other splits have the same path mostly, which has to change with it.
            name = key.rpartition('.dataset.')[2]
            others = [
                (k, v) for other in ('train', 'val', 'test') for k, v, *_ in _paths(cfg, other)
            ]
            keys = [key] + [
                k for k, v in others if k.endswith(f'.{name}') and v == value and k != key
            ]
            raise UserError(
                f'{key} is {value!r}, but {os.path.abspath(path)} {what}: prepare the data as '
                f'"Data" in the README says, or give its place with --cfg-options '
                f'{" ".join(f"{entry}=..." for entry in keys)}'
            )


def _paths(cfg: Config, split: str) -> Iterator[tuple[str, str, str, str]]:
    """Key, value, whole path and suffix of the files of everything that a split reads."""
    loader, evaluator = f'{split}_dataloader', f'{split}_evaluator'
    found = [
        *_dicts((cfg.get(loader) or {}).get('dataset'), f'{loader}.dataset'),
        *_dicts(cfg.get(evaluator), evaluator),
    ]
    for key, node in found:
        if node.get('backend_args'):
            continue
        root, prefix = node.get('data_root') or '', node.get('data_prefix') or {}
        folders = prefix if isinstance(prefix, Mapping) else {'': prefix}
        entries = [('data_root', root, '')]
        for name, folder in folders.items():
            suffix = node.get('img_suffix', '') if name == 'img_path' else ''
            entries.append((f'data_prefix.{name}'.rstrip('.'), folder, suffix))
        entries.append(('ann_file', node.get('ann_file'), ''))
        for entry, value, suffix in entries:
            if isinstance(value, str) and value:
                path = value if entry == 'data_root' else os.path.join(root, value)
                yield f'{key}.{entry}', value, path, suffix


def _dicts(node: Any, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Data sets or metrics at or under ``node``, wrappers (repeat, concatenate ...) opened."""
    if isinstance(node, Mapping):
        yield key, node
        yield from _dicts(node.get('dataset'), f'{key}.dataset')
        yield from _dicts(node.get('datasets'), f'{key}.datasets')
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for index, entry in enumerate(node):
            yield from _dicts(entry, f'{key}.{index}')
