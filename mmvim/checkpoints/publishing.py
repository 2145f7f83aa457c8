"""What of a training checkpoint is published: its weights, and what inference needs beside them."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mmvim.errors import UserError
from mmvim.models import VisionMamba
from mmvim.version import __version__

AVERAGED = 'ema_state_dict'
# Of meta; the rest is about the run: time, seed, iteration.
_KEPT = ('mmengine_version', 'dataset_meta')
# The scan reads A by an exponential, and in float32 under mixed precision too.
_FLOAT32 = ('A_log', 'A_b_log', 'A_logs')


def check_unpublished(checkpoint: Mapping[str, Any], source: str) -> None:
    """Fail unless a checkpoint is one of a training.

    Args:
        checkpoint (Mapping): See :func:`mmvim.checkpoints.reading.read_checkpoint`.
        source (str): What to call it in the message.

    Raises:
        UserError: If it holds weights alone.
    """
    if not checkpoint.keys() - {'meta', 'state_dict'} or 'state_dict' not in checkpoint:
        raise UserError(
            f'{source} is no checkpoint of a training by mmengine: it holds weights without the '
            'state of a run, as one does that is published or converted already'
        )


def run_notes(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """``meta`` of a checkpoint, empty where that is no dict."""
    meta = checkpoint.get('meta')
    return meta if isinstance(meta, Mapping) else {}


def published_meta(checkpoint: Mapping[str, Any], model: nn.Module, config: str) -> dict[str, Any]:
    """``meta`` of the published file.

    Args:
        checkpoint (Mapping): Of a training.
        model (nn.Module): The model that it is of.
        config (str): Text of the config. That of the run has paths of its machine.

    Returns:
        dict[str, Any]: Versions, config, classes and palette, and where the class token of a Vim
        is.
    """
    meta = run_notes(checkpoint)
    kept = {key: meta[key] for key in _KEPT if key in meta}
    tokens = [m.cls_token_type for m in model.modules() if isinstance(m, VisionMamba)]
    noted = dict(cls_token=tokens[0]) if len(tokens) == 1 else {}
    return dict(mmvim_version=__version__, cfg=config) | kept | noted


def to_half(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Matrices and kernels in float16; a model that loads them has its own dtype again.

    Vectors stay as they are (norms with their running statistics, biases, D, the bias of dt): they
    are a small part of the file, and variances leave the range of float16. So does A.

    Args:
        weights (dict[str, torch.Tensor]): Of a model.

    Raises:
        UserError: If a number is beyond the range of float16.
    """
    halved = copy.copy(weights)  # with the versions of modules that it may have beside its items
    for key, value in weights.items():
        if value.is_floating_point() and value.ndim > 1 and not key.endswith(_FLOAT32):
            halved[key] = value.half()
            if not torch.equal(halved[key].isfinite(), value.isfinite()):
                raise UserError(
                    f'{key} has numbers beyond {torch.finfo(torch.float16).max:.0f}, the largest '
                    'of float16: leave --half out'
                )
    return halved
