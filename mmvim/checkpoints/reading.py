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
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import safetensors
import safetensors.torch
import torch
from mmengine.dist import barrier, get_local_rank
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader

from mmvim.compat import version_tuple
from mmvim.errors import UserError, first_line

SUFFIXES = ('.pth', '.safetensors')
# Elements of a tensor that repeats what is stored: more would fill the memory from a small file.
_MOST_REPEATED = 2**30
_HISTORY_STATISTICS = ('mean', 'max', 'min', 'current')
# Older torch reads whatever a file holds, as mmengine expects: the renamed globals that the guarded
# ``getattr`` needs came with 2.6 too.
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


def _allowed_globals() -> list[Any]:
    """Classes and functions in checkpoints besides tensors and plain containers.

    Those of mmengine a history of numbers, those of the published training their command line: a
    ``Namespace`` has attributes and nothing that runs.
    """
    multiarray = importlib.import_module(
        'numpy._core.multiarray' if hasattr(np, '_core') else 'numpy.core.multiarray'
    )
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
        np.ndarray,
        np.dtype,
        *dtypes,
        *renamed,
    ]


def load_checkpoint_file(filename: str | Path, map_location: Any = None) -> Any:
    """Read a checkpoint written by torch or mmengine without ever running code from it.

    Args:
        filename (str | Path): A local ``.pth`` file.
        map_location (Any): As in :func:`torch.load`. Defaults to None.

    Returns:
        Any: The object stored in the file, usually a dict.

    Raises:
        FileNotFoundError: If there is no such file.
        pickle.UnpicklingError: If the file asks for anything but tensors, plain containers, and
            what :func:`_allowed_globals` lists, or is no checkpoint at all.
    """
    path = Path(filename).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'{path} can not be found.')
    with torch.serialization.safe_globals(_allowed_globals()):
        return torch.load(path, map_location=map_location, weights_only=True)


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


if _READS_WEIGHTS_ONLY:
    # mmengine names the loader in its log by what follows the first ten characters.
    @CheckpointLoader.register_scheme(prefixes='', force=True)
    def load_from_local(filename: str, map_location: Any = None) -> Any:
        """Mmengine's loader of files."""
        return load_checkpoint_file(filename, map_location)

    @CheckpointLoader.register_scheme(prefixes=['http://', 'https://'], force=True)
    def load_from_http(filename: str, map_location: Any = None) -> Any:
        """Mmengine's loader of URLs."""
        return load_checkpoint_file(fetch(filename), map_location)


def read_checkpoint(path: str) -> dict[str, Any]:
    """Load a checkpoint to the CPU, through mmengine's loaders as replaced above.

    Args:
        path (str): A file or an URL.

    Raises:
        UserError: If there is no such file, or it is not a checkpoint, or it is cut short, or it
            holds objects that could run code.
    """
    _check_file(path)
    try:
        checkpoint = CheckpointLoader.load_checkpoint(path, map_location='cpu', logger='silent')
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(_refusal(path, error)) from error
    except Exception as error:  # torch, zipfile and urllib each raise their own
        # What a reader stumbles over in a file of another kind (IndexError ...) tells nobody much.
        detail = f' ({first_line(error)})' if isinstance(error, (RuntimeError, OSError)) else ''
        raise UserError(
            f'{path} cannot be read as a checkpoint, it is cut short or something else{detail}'
        ) from error
    if not isinstance(checkpoint, dict) or not _holds_tensors(checkpoint):
        held = (
            f'a dict of {", ".join(map(str, list(checkpoint)[:5]))}'
            if isinstance(checkpoint, dict)
            else f'a {type(checkpoint).__name__}'
        )
        raise UserError(f'{path} is no checkpoint: it holds {held}, but no weights')
    if 'state_dict' in checkpoint:
        checked_weights(checkpoint['state_dict'], path)
    return checkpoint


def _check_file(path: str) -> None:
    if '://' in path:
        return
    file = Path(path).expanduser()
    if file.is_dir():
        raise UserError(f'checkpoint {path} is a folder: give a file in it')
    if not file.is_file():
        names = [p.name for p in file.parent.glob('*.pth')]
        like = difflib.get_close_matches(file.name, names, n=1, cutoff=0.4)
        advice = f'; did you mean {file.parent / like[0]}?' if like else ''
        raise UserError(f'checkpoint {path} does not exist{advice}')


def _refusal(path: str, error: pickle.UnpicklingError) -> str:
    asked = _asked_for(path)
    if asked:
        return (
            f'{path} is refused: it asks for {asked} while it is read, which is no weight and '
            'could run code; get the checkpoint from a source you trust, saved as plain weights'
        )
    # torch wraps the reason in advice on how to read the file nevertheless.
    reason = first_line(error.__context__ or error)
    return f'{path} is no checkpoint, or is refused as unsafe to read: {reason}'


def _asked_for(path: str) -> str:
    """Names of what a file asks for beyond weights; '' where torch cannot tell."""
    try:
        with torch.serialization.safe_globals(_allowed_globals()):
            return ', '.join(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (AttributeError, OSError, RuntimeError, ValueError, pickle.UnpicklingError):
        return ''


def _holds_tensors(checkpoint: Mapping[Any, Any]) -> bool:
    """Whether there are weights, at the top or where files keep them."""
    holders = (checkpoint.get(name) for name in ('state_dict', 'model'))
    return any(
        isinstance(value, torch.Tensor)
        for held in (checkpoint, *holders)
        if isinstance(held, Mapping)
        for value in held.values()
    )


def checked_weights(weights: Any, source: str) -> dict[str, torch.Tensor]:
    """A state dict without the ``module.`` that a wrapped model put before its keys.

    Args:
        weights (Any): What a file holds as its weights.
        source (str): What to call the file in the message.

    Raises:
        UserError: If this is no dict of names and dense tensors.
    """
    if not isinstance(weights, Mapping):
        kind = type(weights).__name__
        raise UserError(f'{source} is no checkpoint that can be used: its weights are a {kind}')
    for key, value in weights.items():
        if not isinstance(key, str):
            problem = f'the key {key!r} of its weights is no name of a parameter'
        elif key.endswith('_extra_state'):  # whatever a module keeps there
            continue
        elif not isinstance(value, torch.Tensor):
            problem = f'{key} is of type {type(value).__name__}, and no tensor'
        elif value.layout is not torch.strided or value.is_quantized or value.is_nested:
            problem = f'{key} is no dense tensor of plain numbers ({value.layout}, {value.dtype})'
        elif value.is_meta:
            problem = f'{key} is a tensor without content (of the meta device)'
        elif value.numel() > max(_MOST_REPEATED, value.untyped_storage().nbytes()):
            problem = f'{key} is one of {value.numel()} numbers, of which the file has few'
        else:
            continue
        raise UserError(f'{source} is no checkpoint that can be used: {problem}')
    return {key.removeprefix('module.'): value for key, value in weights.items()}


@dataclass(frozen=True)
class WeightFile:
    """Content of a file of weights.

    Attributes:
        weights (dict[str, torch.Tensor]): Key to tensor, on the CPU.
        others (list[str]): Names of the entries beside the weights, such as ``optimizer``.
        meta (Mapping[str, Any]): What the file says about itself, such as the ``cls_token`` that a
            converter notes.
    """

    weights: dict[str, torch.Tensor]
    others: list[str] = field(default_factory=list)
    meta: Mapping[str, Any] = field(default_factory=dict)


def read_weight_file(source: str) -> WeightFile:
    """Read the tensors of a checkpoint, and nothing that could run code.

    Args:
        source (str): Path or URL of a ``.safetensors`` or ``.pth`` file. A ``.pth`` file may be a
            state dict, or hold one under ``'model'`` (published) or ``'state_dict'`` (mmengine).

    Returns:
        WeightFile: The tensors, and what there is beside them.

    Raises:
        UserError: If there is no such file, or it is cut short, hostile or no checkpoint.
    """
    path = fetch(source) if '://' in source else Path(source).expanduser()
    if path.suffix == '.safetensors' and path.is_file():
        try:
            with safetensors.safe_open(path, 'pt') as file:
                meta = file.metadata()
            return WeightFile(safetensors.torch.load_file(path), meta=meta or {})
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(
                f'{source} cannot be read as safetensors, it is cut short or something else '
                f'({first_line(error)})'
            ) from error
    checkpoint: Mapping[str, Any] = read_checkpoint(str(path))
    meta, others = checkpoint.get('meta'), []
    for holder in ('state_dict', 'model'):
        if isinstance(checkpoint.get(holder), Mapping):
            others += [str(key) for key in checkpoint if key != holder]
            checkpoint = checkpoint[holder]
    return WeightFile(
        checked_weights(checkpoint, source), others, meta if isinstance(meta, Mapping) else {}
    )


def read_weights(source: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint alone, see :func:`read_weight_file`."""
    return read_weight_file(source).weights
