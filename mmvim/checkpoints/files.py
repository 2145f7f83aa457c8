"""Files of weights: read without running code from them, written in one piece."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from mmvim.atomic_files import write_atomically
from mmvim.checkpoints.loading import read_checkpoint
from mmvim.compat import fetch
from mmvim.errors import UserError, first_line

SUFFIXES = ('.pth', '.safetensors')
# What published code and mmengine keep the weights under.
_HOLDERS = ('state_dict', 'model')


@dataclass(frozen=True)
class WeightFile:
    """What a file of weights holds.

    Attributes:
        weights: Key to tensor, on the CPU.
        others: Names of the entries beside the weights, such as ``optimizer``.
    """

    weights: dict[str, torch.Tensor]
    others: list[str] = field(default_factory=list)


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
            return WeightFile(safetensors.torch.load_file(path))
        except (SafetensorError, OSError) as error:
            raise UserError(
                f'{source} cannot be read as safetensors, it is cut short or something else '
                f'({first_line(error)})'
            ) from error
    with _training_arguments_allowed():
        checkpoint: Mapping[str, Any] = read_checkpoint(str(path))
    others: list[str] = []
    for holder in _HOLDERS:
        if isinstance(checkpoint.get(holder), Mapping):
            others += [key for key in checkpoint if key != holder]
            checkpoint = checkpoint[holder]
    weights = {
        key.removeprefix('module.'): value
        for key, value in checkpoint.items()
        if isinstance(value, torch.Tensor)
    }
    others += [key for key, value in checkpoint.items() if not isinstance(value, torch.Tensor)]
    return WeightFile(weights, others)


def read_weights(source: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint alone, see :func:`read_weight_file`."""
    return read_weight_file(source).weights


def _training_arguments_allowed() -> contextlib.AbstractContextManager[Any]:
    """Let checkpoints in that hold their command line, as those of the published training do.

    A ``Namespace`` has attributes and nothing that runs; torch 2.4 cannot allow it for a while.
    """
    if not hasattr(torch.serialization, 'safe_globals'):
        return contextlib.nullcontext()
    return torch.serialization.safe_globals([argparse.Namespace])


def pack_weights(
    weights: Mapping[str, torch.Tensor], suffix: str, holder: str, **others: Any
) -> bytes:
    """The bytes of a file of weights.

    Args:
        weights (Mapping[str, torch.Tensor]): Stored contiguous, each on its own.
        suffix (str): '.safetensors', which holds the weights alone, or '.pth'.
        holder (str): What a ``.pth`` file keeps the weights under.
        **others (Any): What it holds beside them.

    Returns:
        bytes: The same for the same input.

    Raises:
        ValueError: If the suffix is another one.
    """
    # A slice would take the whole of what it is cut from with it into the file.
    own = {
        key: value.detach().clone(memory_format=torch.contiguous_format)
        for key, value in weights.items()
    }
    if suffix == '.safetensors':
        return safetensors.torch.save(own, metadata={'format': 'pt'})
    if suffix != '.pth':
        raise ValueError(f'a file of weights ends in one of {SUFFIXES}, got {suffix!r}.')
    buffer = io.BytesIO()
    torch.save({**others, holder: own}, buffer)
    return buffer.getvalue()


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Fail if a file is there that nobody said may be replaced.

    Raises:
        UserError: Names it.
    """
    if path.exists() and not overwrite:
        raise UserError(f'{path} exists: give another name, or --overwrite to replace it')


def write_hashed(path: Path, content: bytes) -> str:
    """Write a file, whole or not at all.

    Args:
        path (Path): Its folder is made where missing.
        content (bytes): All of it.

    Returns:
        str: The SHA-256 of the content.

    Raises:
        UserError: If the file cannot be written; what was there is as it was.
    """
    try:
        write_atomically(path, content)
    except OSError as error:
        raise UserError(f'{path} cannot be written ({error.strerror})') from error
    return hashlib.sha256(content).hexdigest()
