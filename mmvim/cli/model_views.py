"""What a trained model holds for an image: its taps, its class responses, its positions."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS
from mmengine.utils import to_2tuple
from torch import Tensor, nn

from mmvim.analysis.backbone_maps import deepest_map, feature_maps, tap_indices
from mmvim.analysis.token_maps import class_responses, position_similarity, token_norms
from mmvim.checkpoints.strict import load_strictly
from mmvim.cli.pictures import dataset_meta, read_rgb, to_rgb
from mmvim.datasets.pipelines import pipeline_owner, without_annotations
from mmvim.errors import UserError

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class NotApplicableError(UserError):
    """A picture that this model has no material for."""


@dataclass(frozen=True)
class Sample:
    """An image as the network gets it.

    Attributes:
        name: For the files.
        picture: (H, W, 3), uint8, RGB, padded like the input.
        inputs: (1, C, H, W), preprocessed.
    """

    name: str
    picture: np.ndarray
    inputs: Tensor


class Subject:
    """A trained model, ready to be looked at.

    Args:
        cfg: Its config.
        path: The config's file, for messages.
        checkpoint: Content of its checkpoint.
        source: What to call the checkpoint in messages.
        device: Where to run.
        blocks: Blocks to tap, see :func:`mmvim.analysis.backbone_maps.tap_indices`.
    """

    def __init__(
        self,
        cfg: Config,
        path: str,
        checkpoint: Mapping[str, Any],
        source: str,
        device: torch.device,
        blocks: Sequence[int] | None = None,
    ) -> None:
        self.cfg = cfg
        self.device = device
        self.model: Any = _build(cfg.model, cfg)
        load_strictly(self.model, checkpoint, source)
        self.model.to(device).eval()
        if not isinstance(getattr(self.model, 'backbone', None), nn.Module):
            raise UserError(f'{type(self.model).__name__} has no backbone to look at')
        self.backbone = self.model.backbone
        self.indices = tap_indices(self.backbone, blocks)
        self.classes = dataset_meta(cfg, checkpoint).get('classes')
        owner = pipeline_owner(cfg.test_dataloader.dataset, f'visualising {path}')
        self._steps = owner.pipeline
        self._pipeline = Compose(without_annotations(owner.pipeline))

    def sample(self, image: Path, name: str) -> Sample:
        """Run the test pipeline and the data preprocessor on an image file."""
        read_rgb(image)  # fails with a sentence where it cannot be decoded
        item = self._pipeline(dict(img_path=str(image), img_id=0, seg_fields=[], instances=[]))
        picture = to_rgb(item['inputs'].numpy(), self._steps)
        inputs = self.model.data_preprocessor(pseudo_collate([item]), False)['inputs']
        if not isinstance(inputs, Tensor):
            inputs = torch.stack(list(inputs))
        rows, columns = (total - own for total, own in zip(inputs.shape[-2:], picture.shape[:2]))
        return Sample(name, np.pad(picture, ((0, rows), (0, columns), (0, 0))), inputs)

    @torch.no_grad()
    def taps(self, sample: Sample) -> list[tuple[str, Tensor]]:
        """Title and strength (h, w) of every tap."""
        maps = feature_maps(self.backbone, sample.inputs, self.indices)
        titles = [f'after block {i}' for i in self.indices] or [
            f'output {i}' for i in range(len(maps))
        ]
        return [(title, token_norms(entry)[0].cpu()) for title, entry in zip(titles, maps)]

    @torch.no_grad()
    def responses(self, sample: Sample, count: int) -> list[tuple[str, Tensor]]:
        """Class name and response (h, w) of the classes that respond most.

        Raises:
            NotApplicableError: If the model has neither a linear classifier on its features nor
                a decode head that scores classes.
        """
        model = self.model
        if hasattr(model, 'decode_head'):
            scores = _scores(model, sample.inputs)
            maps = scores.sigmoid() if scores.shape[1] == 1 else scores.softmax(dim=1)
            order = maps[0].mean(dim=(1, 2)).argsort(descending=True)
        else:
            linear = getattr(getattr(model, 'head', None), 'fc', None)
            features = deepest_map(self.backbone, sample.inputs)
            if not isinstance(linear, nn.Linear) or linear.in_features != features.shape[1]:
                raise NotApplicableError(
                    f'{type(model).__name__} has neither a linear classifier on the features of '
                    'its backbone nor a decode head'
                )
            maps = class_responses(features, linear.weight, linear.bias)
            order = model.head(model.extract_feat(sample.inputs))[0].argsort(descending=True)
        return [(self._class(int(i)), maps[0, int(i)].cpu()) for i in order[:count]]

    def positions(self) -> Tensor:
        """Similarity (h, w, h, w) of the position embedding.

        Raises:
            NotApplicableError: If the backbone has none for a grid of patches.
        """
        rows, grid = getattr(self.backbone, 'pos_embed', None), _grid(self.backbone)
        if not isinstance(rows, Tensor) or rows.ndim != 3 or grid is None:
            raise NotApplicableError(
                f'{type(self.backbone).__name__} has no position embedding for a grid of patches'
            )
        patches = rows.detach()[:, rows.shape[1] - grid[0] * grid[1] :]  # class tokens go before
        return position_similarity(patches, grid).cpu()

    def _class(self, index: int) -> str:
        return f'class {index}' if not self.classes else str(self.classes[index])


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


def _scores(model: Any, inputs: Tensor) -> Tensor:
    """What a decode head gives before its scores are resized to the image, (B, K, h, w).

    Raises:
        NotApplicableError: If it gives something else, or needs more than features.
    """
    head = model.decode_head
    needed = [
        parameter.name
        for parameter in inspect.signature(head.forward).parameters.values()
        if parameter.default is parameter.empty and parameter.kind in _POSITIONAL
    ]
    scores = head(model.extract_feat(inputs)) if len(needed) == 1 else None
    if not isinstance(scores, Tensor) or scores.ndim != 4:
        raise NotApplicableError(f'{type(head).__name__} gives no map of scores per class')
    return scores


def _build(settings: ConfigDict, cfg: Config) -> Any:
    """A model on one device, with the data preprocessor of the config, as the runner has it."""
    settings = settings.copy()
    if cfg.get('data_preprocessor') is not None:
        settings.setdefault('data_preprocessor', cfg.data_preprocessor)
    return revert_sync_batchnorm(MODELS.build(settings))


def untrained(cfg: Config, device: torch.device) -> Any:
    """The config's model at a seeded random start, nothing loaded."""
    torch.manual_seed(0)
    model = _build(ConfigDict(_without_checkpoints(cfg.model.to_dict())), cfg)
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)  # mmengine logs how every parameter was drawn
    model.init_weights()
    logger.setLevel(level)
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
