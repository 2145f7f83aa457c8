"""Views of a trained model: strength of its tokens, class responses, positions."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config, ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS
from mmengine.utils import to_2tuple
from torch import Tensor, nn

from mmvim.analysis.backbone_maps import feature_maps, tap_unit
from mmvim.errors import UserError


class NotApplicableError(UserError):
    """A picture that this model has no material for."""


@torch.no_grad()
def token_strengths(
    backbone: nn.Module, inputs: Tensor, indices: Sequence[int]
) -> dict[str, Tensor]:
    """Strength of every token after some blocks or stages: the Euclidean norm over its channels.

    Args:
        backbone (nn.Module): Of any OpenMMLab library.
        inputs (Tensor): Shape (1, C, H, W), preprocessed.
        indices (Sequence[int]): Of :func:`mmvim.analysis.backbone_maps.tap_indices`.

    Returns:
        dict[str, Tensor]: Shape (h, w) by a title.
    """
    maps = feature_maps(backbone, inputs, indices)
    unit = tap_unit(backbone)
    titles = [f'after {unit} {i}' for i in indices] or [f'output {i}' for i in range(len(maps))]
    return {title: entry[0].norm(dim=0).cpu() for title, entry in zip(titles, maps)}


@torch.no_grad()
def class_responses(model: Any, inputs: Tensor, count: int) -> dict[int, Tensor]:
    """Response of every token to the classes that respond most.

    A decode head's shares per class; or a classifier's linear layer applied to every token after
    the final norm. Under mean pooling the mean of these is the classifier's output, which makes
    them the class activation maps of Zhou et al. (arXiv 1512.04150).

    Args:
        model (nn.Module): A segmentor or classifier of an OpenMMLab library.
        inputs (Tensor): Shape (1, C, H, W), preprocessed.
        count (int): How many classes.

    Returns:
        dict[int, Tensor]: Shape (h, w) by the number of the class, the strongest first.

    Raises:
        NotApplicableError: If the model has neither a linear classifier on its features nor a
            decode head that scores classes.
    """
    if hasattr(model, 'decode_head'):
        head, features = model.decode_head, model.extract_feat(inputs)
        try:
            inspect.signature(head.forward).bind(features)
            maps = head(features)
        except TypeError:  # it needs more than features
            maps = None
        if not isinstance(maps, Tensor) or maps.ndim != 4:
            raise NotApplicableError(f'{type(head).__name__} gives no map of scores per class')
        maps = maps.sigmoid() if maps.shape[1] == 1 else maps.softmax(dim=1)
        order = maps[0].mean(dim=(1, 2)).argsort(descending=True)
    else:
        linear = getattr(getattr(model, 'head', None), 'fc', None)
        (features,) = feature_maps(model.backbone, inputs)
        if not isinstance(linear, nn.Linear) or linear.in_features != features.shape[1]:
            raise NotApplicableError(
                f'{type(model).__name__} has neither a linear classifier on the features of '
                'its backbone nor a decode head'
            )
        maps = F.conv2d(features, linear.weight[:, :, None, None], linear.bias)
        order = model.head(model.extract_feat(inputs))[0].argsort(descending=True)
    return {int(i): maps[0, int(i)].cpu() for i in order[:count]}


def position_similarity(backbone: nn.Module) -> Tensor:
    """Cosine similarity between the position embeddings of all patches.

    Args:
        backbone (nn.Module): Ours, mmpretrain's or mmseg's.

    Returns:
        Tensor: Shape (h, w, h, w); entry [i, j] is the map of the patch in row i, column j.

    Raises:
        NotApplicableError: If the backbone has none for a grid of patches.
    """
    rows, grid = getattr(backbone, 'pos_embed', None), _grid(backbone)
    if not isinstance(rows, Tensor) or rows.ndim != 3 or grid is None:
        raise NotApplicableError(
            f'{type(backbone).__name__} has no position embedding for a grid of patches'
        )
    patches = rows.detach()[0, rows.shape[1] - grid[0] * grid[1] :]  # class tokens go before
    patches = F.normalize(patches, dim=1)
    return (patches @ patches.T).reshape(*grid, *grid).cpu()


def _grid(backbone: nn.Module) -> tuple[int, int] | None:
    """The grid of patches that a position embedding is stored for: ours, mmpretrain's, mmseg's."""
    for name in ('grid_size', 'patch_resolution'):
        grid = getattr(backbone, name, None)
        if grid is not None:
            return int(grid[0]), int(grid[1])
    size, patch = (getattr(backbone, name, None) for name in ('img_size', 'patch_size'))
    if size is None or patch is None:
        return None
    rows, columns = (pixels // side for pixels, side in zip(to_2tuple(size), to_2tuple(patch)))
    return rows, columns


def build_model(cfg: Config, settings: Any = None) -> Any:
    """The config's model on one device, with its data preprocessor, as the runner has it."""
    # A copy: some detectors write into their config.
    settings = ConfigDict(copy.deepcopy(cfg.model if settings is None else settings))
    if cfg.get('data_preprocessor') is not None:
        settings.setdefault('data_preprocessor', cfg.data_preprocessor)
    return revert_sync_batchnorm(MODELS.build(settings))


def untrained(cfg: Config, device: torch.device) -> Any:
    """The config's model at a seeded random start, nothing loaded."""
    torch.manual_seed(0)
    model = build_model(cfg, _without_checkpoints(cfg.model.to_dict()))
    logging.disable(logging.INFO)  # mmengine logs how every parameter was drawn
    model.init_weights()
    logging.disable(logging.NOTSET)
    return model.to(device).eval()


def _without_checkpoints(node: Any) -> Any:
    """A model's settings without the files that it would start from."""
    if isinstance(node, dict):
        return {
            key: _without_checkpoints(value)
            for key, value in node.items()
            if not (key == 'pretrained' or (key == 'init_cfg' and 'checkpoint' in (value or ())))
        }
    if isinstance(node, (list, tuple)):
        return type(node)(_without_checkpoints(entry) for entry in node)
    return node
