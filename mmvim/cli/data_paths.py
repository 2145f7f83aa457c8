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
    for key, value, root, path, suffix in (e for split in splits for e in _paths(cfg, split)):
        what = 'does not exist'
        if os.path.isdir(path) and next(Path(path).rglob(f'*{suffix}'), None) is None:
            what = f'holds no *{suffix}'
        elif os.path.isdir(path) or (os.path.isfile(path) and not key.endswith('data_root')):
            continue
        elif key.endswith('data_root') and os.path.isfile(path.rstrip('/')):
            what = 'is a file, and no folder'
        elif os.path.isdir(root):  # of another data set, or not converted
            held = sorted(os.listdir(root))
            what += f' (data_root holds {", ".join(held[:3])}{", ..." if held[3:] else ""})'
        # The other splits have the same path mostly, which has to change with it.
        name, others = key.rpartition('.dataset.')[2], ('train', 'val', 'test')
        like = [k for other in others for k, v, *_ in _paths(cfg, other) if v == value]
        keys = dict.fromkeys([key, *(k for k in like if k.endswith(f'.{name}'))])
        raise UserError(
            f'{key} is {value!r}, but {os.path.abspath(path)} {what}: prepare the data as "Data" '
            f'in the README says, or give its place with --cfg-options {"=... ".join(keys)}=...'
        )


def _paths(cfg: Config, split: str) -> Iterator[tuple[str, str, str, str, str]]:
    """Key, value, data root, whole path and suffix of everything that a split reads."""
    loader, evaluator = f'{split}_dataloader', f'{split}_evaluator'
    found = [
        *_dicts((cfg.get(loader) or {}).get('dataset'), f'{loader}.dataset'),
        *_dicts(cfg.get(evaluator), evaluator),
    ]
    for key, node in found:
        root, prefix = node.get('data_root') or '', node.get('data_prefix') or {}
        folders = prefix if isinstance(prefix, Mapping) else {'': prefix}
        entries = {f'data_prefix.{name}'.rstrip('.'): folder for name, folder in folders.items()}
        for entry, value in dict(data_root='', **entries, ann_file=node.get('ann_file')).items():
            given = root if entry == 'data_root' else value
            if given and isinstance(given, str) and not node.get('backend_args'):
                path, suffix = os.path.join(root, value), node.get('img_suffix', '')
                if '://' not in path:
                    yield f'{key}.{entry}', given, root, path, suffix if 'img_path' in entry else ''


def _dicts(node: Any, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Data sets or metrics at or under ``node``, wrappers (repeat, concatenate ...) opened."""
    if isinstance(node, Mapping):
        yield key, node
        yield from _dicts(node.get('dataset'), f'{key}.dataset')
        yield from _dicts(node.get('datasets'), f'{key}.datasets')
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for index, entry in enumerate(node):
            yield from _dicts(entry, f'{key}.{index}')
