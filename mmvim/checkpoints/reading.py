"""Checkpoint files, read without running code from them.

Importing the module lets mmengine's loaders read this way too: ``torch.load`` reads weights only
since torch 2.6, and the checkpoints of mmengine hold a ``HistoryBuffer`` beside them. Obsolete when
mmengine loads its own checkpoints.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import importlib
import json
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import safetensors
import torch
from mmengine.dist import barrier, get_local_rank
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader

from mmvim.checkpoints.keys import choose_copy, plain_key
from mmvim.compat import version_tuple
from mmvim.errors import UserError, first_line

SUFFIXES = ('.pth', '.safetensors')
# The one text that a .safetensors file of ours has beside its tensors: ``meta`` as JSON.
META_ENTRY = 'mmvim'
# Names under which files keep their weights, beside which there may be others.
HOLDERS = ('state_dict', 'model')
# Elements of a tensor that repeats what is stored: more would fill the memory from a small file.
_MOST_REPEATED = 2**30
_HISTORY_STATISTICS = ('mean', 'max', 'min', 'current')
# The renamed globals that the guarded ``getattr`` needs came with 2.6 too.
_READS_WEIGHTS_ONLY = version_tuple(torch.__version__) >= (2, 6)


def _guarded_getattr(obj: object, name: str) -> Any:
    """Stand in for ``builtins.getattr`` while a checkpoint is read.

    mmengine pickles the statistics methods of ``HistoryBuffer`` as ``getattr(HistoryBuffer,
    'mean')``. The plain builtin would let a crafted file walk from there to
    ``HistoryBuffer.__init__.__globals__`` and on to any code.
    """
    if obj is HistoryBuffer and name in _HISTORY_STATISTICS:
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(
        f'the checkpoint asks for attribute {name!r} of {obj!r}; only the statistics '
        f'{", ".join(_HISTORY_STATISTICS)} of mmengine HistoryBuffer are allowed.'
    )


class _PlainNode:
    """Stands in for yacs' ``CfgNode``, a dict with a few flags, which need not be installed."""

    def __new__(cls) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        """An empty dict of the kind that is filled while a checkpoint is read."""
        return OrderedDict()


def _allowed_globals() -> list[Any]:
    """Classes and functions in checkpoints besides tensors and plain containers.

    Those of mmengine hold a history of numbers, those of the published trainings their command line
    (Vim; a ``Namespace`` has attributes and nothing that runs) or their config (VMamba).
    """
    core = 'numpy._core' if hasattr(np, '_core') else 'numpy.core'
    multiarray = importlib.import_module(f'{core}.multiarray')
    # A file keeps the module path of the numpy that wrote it: 1.x and 2.x differ.
    renamed = [
        (getattr(multiarray, name), f'{module}.{name}')
        for module in ('numpy.core.multiarray', 'numpy._core.multiarray')
        for name in ('_reconstruct', 'scalar')
    ]
    dtypes = {type(np.dtype(code)) for code in '?bBhHiIlLqQefd'}
    return [
        argparse.Namespace,
        HistoryBuffer,
        (_guarded_getattr, 'builtins.getattr'),
        (_PlainNode, 'yacs.config.CfgNode'),
        np.ndarray,
        np.dtype,
        *dtypes,
        *renamed,
    ]


def load_checkpoint_file(filename: str | Path, map_location: Any = None) -> Any:
    """Read a checkpoint written by torch, mmengine or safetensors without running code from it.

    With torch < 2.6 files of torch's format are read as mmengine reads them, which runs code.

    Args:
        filename (str | Path): A local file, ``.safetensors`` or of torch's format; behind a ``#``
            which of several models in it is meant: an entry, or a part of the keys.
        map_location (Any): As in :func:`torch.load`. Defaults to None.

    Returns:
        Any: The object stored in the file, usually a dict; of a ``.safetensors`` file the tensors
        under ``'state_dict'`` and its metadata under ``'meta'``.

    Raises:
        FileNotFoundError: If there is no such file.
        pickle.UnpicklingError: If the file asks for anything but tensors, plain containers, and
            what :func:`_allowed_globals` lists, or is no checkpoint at all.
        UserError: If the part that is asked for is not there.
    """
    name, part = split_part(str(filename))
    path = Path(name).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'{path} can not be found.')
    if path.suffix == '.safetensors':
        with safetensors.safe_open(path, 'pt') as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            meta = file.metadata() or {}
        meta = json.loads(meta[META_ENTRY]) if META_ENTRY in meta else meta
        checkpoint: Any = dict(state_dict=weights, meta=meta)
    elif _READS_WEIGHTS_ONLY:
        with torch.serialization.safe_globals(_allowed_globals()):
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    else:
        checkpoint = torch.load(path, map_location=map_location)
    return _narrowed(checkpoint, part, name) if part else checkpoint


def split_part(source: str) -> tuple[str, str]:
    """Path or URL, and what stands behind a ``#``; '' for nothing, or where that is a file."""
    name, _, part = source.partition('#')
    return (source, '') if Path(source).expanduser().is_file() else (name, part)


def _narrowed(checkpoint: Any, part: str, source: str) -> dict[str, Any]:
    """A checkpoint whose weights are those of one part alone."""
    kept = checkpoint.get(part) if isinstance(checkpoint, Mapping) else None
    if not isinstance(kept, Mapping):
        weights = weights_of(checkpoint, source)
        kept = {key: value for key, value in weights.items() if part in key.split('.')}
    if not kept:
        raise UserError(f'{source} has nothing under {part!r}: leave #{part} out of the path')
    return dict(checkpoint, state_dict=kept)


def fetch(url: str) -> Path:
    """Download a file once, into torch.hub's folder.

    Args:
        url (str): Where the file is.

    Returns:
        Path: The local copy. Its name starts with a digest of the whole URL, so that two files of
        the same name stay apart.
    """
    name = Path(urlparse(url).path).name
    digest = hashlib.sha256(url.encode()).hexdigest()[:8]
    file = Path(torch.hub.get_dir()) / 'checkpoints' / f'{digest}-{name}'
    if get_local_rank() == 0 and not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file))
    barrier()
    return file


# mmengine names the loader in its log by what follows the first ten characters.
@CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Mmengine's loader of files."""
    return load_checkpoint_file(filename, map_location)


@CheckpointLoader.register_scheme(prefixes=['http://', 'https://', 'file://'], force=True)
def load_from_http(filename: str, map_location: Any = None) -> Any:
    """Mmengine's loader of URLs."""
    url, part = split_part(filename)
    return load_checkpoint_file(f'{fetch(url)}#{part}', map_location)


def read_checkpoint(source: str) -> dict[str, Any]:
    """Load a checkpoint to the CPU, through mmengine's loaders as replaced above.

    Args:
        source (str): Path or URL of a ``.safetensors`` or ``.pth`` file.

    Raises:
        UserError: If there is no such file, or it is cut short, hostile or no checkpoint, or its
            weights are of no use.
    """
    _check_file(source)
    try:
        checkpoint = CheckpointLoader.load_checkpoint(source, map_location='cpu', logger='silent')
    except (MemoryError, UserError):
        raise
    except pickle.UnpicklingError as error:
        # torch wraps the reason in advice on how to read the file nevertheless.
        reason = first_line(error.__context__ or error)
        raise UserError(
            f'{source} is refused: it is no checkpoint, or asks for more than weights while it is '
            f'read, which could run code ({reason})'
        ) from error
    except Exception as error:  # torch, zipfile, safetensors and urllib each raise their own
        raise UserError(
            f'{source} cannot be read as a checkpoint, it is cut short or something else '
            f'({first_line(error)})'
        ) from error
    if not isinstance(checkpoint, dict):
        raise UserError(f'{source} is no checkpoint: it holds a {type(checkpoint).__name__}')
    weights_of(checkpoint, source)
    return checkpoint


def _check_file(path: str) -> None:
    if '://' in path:
        return
    file = Path(split_part(path)[0]).expanduser()
    if file.is_dir():
        raise UserError(f'checkpoint {path} is a folder: give a file in it')
    if not file.is_file():
        names = [p.name for p in file.parent.glob('*.pth')]
        like = difflib.get_close_matches(file.name, names, n=1, cutoff=0.4)
        advice = f'; did you mean {file.parent / like[0]}?' if like else ''
        raise UserError(f'checkpoint {path} does not exist{advice}')


def weights_of(checkpoint: Mapping[Any, Any], source: str) -> OrderedDict[str, torch.Tensor]:
    """The weights in a checkpoint, under keys without the names of wrappers.

    Args:
        checkpoint (Mapping): A state dict, or a dict that holds one: under ``'state_dict'``
            (mmengine), else ``'model'`` (published), else under the only name that does, see
            :func:`mmvim.checkpoints.keys.choose_copy`.
        source (str): What to call the file in the message.

    Raises:
        UserError: If there are none, or they are no dict of names and dense tensors, or several
            models.
    """
    held: Any = checkpoint
    for _ in HOLDERS:  # one may lie in the other
        if not isinstance(held, Mapping):
            break
        names = [name for name in HOLDERS if name in held][:1]
        if not names and not _holds_tensors(held):
            names = [k for k, v in held.items() if isinstance(k, str) and _holds_tensors(v)]
        held = held[choose_copy(names, source)] if names else held
    if not isinstance(held, Mapping):
        raise UserError(
            f'{source} is no checkpoint that can be used: its weights are a {type(held).__name__}'
        )
    if not _holds_tensors(held):
        raise UserError(
            f'{source} is no checkpoint: it holds a dict of {", ".join(map(str, list(held)[:5]))}, '
            'but no weights'
        )
    for key, value in held.items():
        problem = _problem(key, value)
        if problem:
            raise UserError(f'{source} is no checkpoint that can be used: {problem}')
    weights = OrderedDict((plain_key(key), value) for key, value in held.items())
    if len(weights) < len(held):
        raise UserError(f'{source} is no checkpoint that can be used: it has a key twice, wrapped')
    if hasattr(held, '_metadata'):  # versions of modules, read by their loading hooks
        weights._metadata = held._metadata  # type: ignore[attr-defined]
    return weights


def _holds_tensors(held: Any) -> bool:
    return isinstance(held, Mapping) and any(isinstance(v, torch.Tensor) for v in held.values())


def _problem(key: Any, value: Any) -> str:
    """Why an entry of a state dict is of no use; '' for one that is."""
    if not isinstance(key, str):
        return f'the key {key!r} of its weights is no name of a parameter'
    if key.endswith('_extra_state'):  # whatever a module keeps there
        return ''
    if not isinstance(value, torch.Tensor):
        return f'{key} is of type {type(value).__name__}, and no tensor'
    if value.layout is not torch.strided or value.is_quantized or value.is_nested:
        return f'{key} is no dense tensor of plain numbers ({value.layout}, {value.dtype})'
    if value.is_meta:
        return f'{key} is a tensor without content (of the meta device)'
    if value.numel() > max(_MOST_REPEATED, value.untyped_storage().nbytes()):
        return f'{key} is one of {value.numel()} numbers, of which the file has few'
    return ''


def read_weights(source: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint alone, see :func:`read_checkpoint` and :func:`weights_of`."""
    return weights_of(read_checkpoint(source), source)
