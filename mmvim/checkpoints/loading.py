"""Read a checkpoint file, and compare its weights with a model, key by key."""

import difflib
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import find_latest_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

from mmvim.errors import UserError, first_line

_SHOWN = 3  # keys named for each kind of misfit
_SECTIONS = {
    'missing': re.compile(r'Missing key\(s\) in state_dict: (.*?)\. *$', re.MULTILINE),
    'unexpected': re.compile(r'Unexpected key\(s\) in state_dict: (.*?)\. *$', re.MULTILINE),
}
_SHAPE = re.compile(
    r'size mismatch for (?P<key>\S+): copying a param with shape torch\.Size\(\[(?P<file>[^]]*)\]\)'
    r' from checkpoint, the shape in current model is torch\.Size\(\[(?P<model>[^]]*)\]\)'
)


def read_checkpoint(path: str) -> dict[str, Any]:
    """Load a checkpoint to the CPU, through mmengine's loader as mmvim mends it (weights only).

    Args:
        path: A file or an URL.

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
    if not isinstance(checkpoint, dict) or not _weights(checkpoint):
        held = (
            f'a dict of {", ".join(map(str, list(checkpoint)[:5]))}'
            if isinstance(checkpoint, dict)
            else f'a {type(checkpoint).__name__}'
        )
        raise UserError(f'{path} is no checkpoint: it holds {held}, but no weights')
    return checkpoint


def check_resumable(path: str, checkpoint: Mapping[str, Any]) -> None:
    """Fail unless the file holds the state of a training run beside the weights."""
    meta = checkpoint.get('meta')
    absent = [key for key in ('epoch', 'iter') if not isinstance(meta, Mapping) or key not in meta]
    absent += [key for key in ('optimizer', 'message_hub') if key not in checkpoint]
    if absent:
        raise UserError(
            f'{path} cannot be resumed, it holds weights but no {", ".join(absent)}: to start from '
            f'its weights, leave --resume out and add --cfg-options load_from={path}'
        )


def latest_checkpoint(work_dir: str) -> str | None:
    """The newest checkpoint of a work dir, None where no run has saved any."""
    path = find_latest_checkpoint(work_dir)
    if path is None or os.path.isfile(path):
        return path
    moved = Path(work_dir, Path(path).name)
    if moved.is_file():  # the work dir was moved after the run; the note in it has the old place
        return str(moved)
    raise UserError(
        f'{Path(work_dir, "last_checkpoint")} names {path}, which does not exist: give the '
        'checkpoint with --resume PATH'
    )


def load_strictly(model: nn.Module, checkpoint: Mapping[str, Any], source: str) -> None:
    """Load weights, refusing a checkpoint that does not fit the model exactly.

    Args:
        model: May be wrapped for distributed runs or test-time augmentation. Its own hooks on
            loading (a position embedding that is resized) run as usual.
        checkpoint: As :func:`read_checkpoint` returns it.
        source: What to call the checkpoint in the message.

    Raises:
        UserError: Counts and names the first missing, unexpected and mis-shaped keys.
    """
    model = _unwrapped(model)
    weights = _weights(checkpoint)
    state = OrderedDict((re.sub(r'^module\.', '', key), value) for key, value in weights.items())
    if hasattr(weights, '_metadata'):  # versions of modules, read by their loading hooks
        state._metadata = weights._metadata  # type: ignore[attr-defined]
    try:
        model.load_state_dict(state, strict=True)
    except ValueError as error:  # a hook on loading that cannot use what it finds
        raise UserError(f'{source} does not fit the {type(model).__name__}: {error}') from error
    except RuntimeError as error:
        misfits = _misfits(str(error))
        if misfits:
            hint = _published_hint(checkpoint)
            raise UserError(
                f'{source} does not fit the {type(model).__name__} of this config: '
                f'{"; ".join(misfits)}; {hint}'
            ) from error


def _unwrapped(model: nn.Module) -> nn.Module:
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        inner = model.module
        assert isinstance(inner, nn.Module)
        model = inner
    return model


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
    named = re.search(r'GLOBAL ([\w.]+)', str(error))
    if named is not None:
        return (
            f'{path} is refused: it asks for {named[1]} while it is read, which is no weight and '
            'could run code; get the checkpoint from a source you trust, saved as plain weights'
        )
    reason = re.search(r'WeightsUnpickler error:\s*([^\n]+)', str(error))  # amid torch's advice
    return (
        f'{path} is no checkpoint, or is refused as unsafe to read: '
        f'{reason[1] if reason is not None else first_line(error)}'
    )


def _weights(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tensors by key; empty if there are none."""
    held = checkpoint.get('state_dict', checkpoint)
    if not isinstance(held, Mapping) or not held:
        return {}
    if any(isinstance(value, torch.Tensor) for value in held.values()):
        return held
    return held if isinstance(held.get('model'), Mapping) else {}


def _published_hint(checkpoint: Mapping[str, Any]) -> str:
    if isinstance(checkpoint.get('model'), Mapping):
        return (
            "its weights are under 'model', as in published Vim files: convert them with "
            'tools/model_converters/official_to_mmvim.py'
        )
    return 'use the config it was trained with'


def _misfits(message: str) -> list[str]:
    """Phrases about each kind of misfit in torch's message, none for what may be ignored."""
    phrases = []
    for kind, pattern in _SECTIONS.items():
        found = pattern.search(message)
        keys = re.findall(r'"([^"]+)"', found[1]) if found is not None else []
        # Files older than torch 0.4.1 lack this counter, and evaluation never reads it.
        keys = [key for key in keys if not key.endswith('num_batches_tracked')]
        if keys:
            phrases.append(f'{_count(keys)} {kind} ({_first(keys)})')
    shapes = [
        f'{found["key"]}: ({found["file"]}) in the file, ({found["model"]}) in the model'
        for found in _SHAPE.finditer(message)
    ]
    if shapes:
        phrases.append(f'{_count(shapes)} of another shape ({_first(shapes)})')
    understood = phrases or any(pattern.search(message) for pattern in _SECTIONS.values())
    return phrases if understood else [message]


def _count(keys: Sequence[str]) -> str:
    return f'{len(keys)} {"key" if len(keys) == 1 else "keys"}'


def _first(keys: Sequence[str]) -> str:
    return ', '.join([*keys[:_SHOWN], *(['…'] if len(keys) > _SHOWN else [])])
