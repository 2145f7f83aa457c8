"""What loading and converting ask about a family of backbones, one value each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from mmvim.checkpoints import vim, vmamba
from mmvim.checkpoints.keys import Weights
from mmvim.models import VisionMamba, VMamba
from mmvim.models.token_layout import CLS_TOKENS

Parts = tuple[dict[str, torch.Tensor], Weights]


class Family(NamedTuple):
    """A backbone of ours, and the published files that it reads.

    Attributes:
        name (str): For people.
        kind (type): The backbone.
        pretrained (str): Its weight initialiser.
        marks (tuple[str, ...]): Keys that a backbone of the family has, published or ours.
        patch_embed (str): Our key of the kernel that sees the image.
        heads (Mapping[str, str]): Published keys of the linear classifier to mmpretrain's.
        made_of (Mapping[str, Sequence[str]]): See :func:`mmvim.checkpoints.comparing.origins`.
        our_part (Callable): The backbone's tensors under our keys, and the others, of weights
            behind any prefix; given the weights, what to call them, a model and the ``cls_token``
            that the file notes.
        unused_keys (Callable): Keys that a model has no use for; given the model, weights under
            our keys, and their prefix.
        initial_keys (Callable): Keys of the model that stay as they are drawn; given the same.
    """

    name: str
    kind: type[Any]
    pretrained: str
    marks: tuple[str, ...]
    patch_embed: str
    heads: Mapping[str, str]
    made_of: Mapping[str, Sequence[str]]
    our_part: Callable[[Weights, str, Any, object], Parts]
    unused_keys: Callable[[Any, Weights, str], list[str]]
    initial_keys: Callable[[Any, Weights, str], list[str]]


def _vim_part(weights: Weights, source: str, model: VisionMamba, noted: object) -> Parts:
    """A single class token that nothing tells about is where the model has it."""
    own = model.cls_token_type
    otherwise = own if CLS_TOKENS[own] == 1 else 'middle'
    return vim.our_part(weights, source, noted=noted, otherwise=otherwise)


VIM = Family(
    'Vim',
    VisionMamba,
    'mmvim.PretrainedVim',
    vim.MARKS,
    vim.OURS_MARK,
    vim.HEADS,
    vim.MADE_OF,
    _vim_part,
    vim.unused_keys,
    lambda model, weights, prefix: [],
)
VMAMBA = Family(
    'VMamba',
    VMamba,
    'mmvim.PretrainedVMamba',
    vmamba.MARKS,
    vmamba.OURS_MARK,
    vmamba.HEADS,
    {},
    lambda weights, source, model, noted: vmamba.our_part(weights, source, model),
    vmamba.unused_keys,
    vmamba.initial_keys,
)


def only_backbone(model: nn.Module) -> tuple[str, Any, Family] | None:
    """Prefix, module and family of our backbone in a model; None for none, or several."""
    found = [
        (f'{name}.' if name else '', module, family)
        for name, module in model.named_modules()
        for family in (VIM, VMAMBA)
        if isinstance(module, family.kind)
    ]
    return found[0] if len(found) == 1 else None
