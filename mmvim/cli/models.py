"""A model ready to predict, from a config and a checkpoint, and its prediction."""

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.registry import MODELS

from mmvim.checkpoints.strict import load_strictly


def build_model(
    cfg: Config, checkpoint: Mapping[str, Any], source: str, device: torch.device
) -> BaseModel:
    """Build the config's model, load its weights strictly and put it into evaluation mode.

    Args:
        cfg: The config.
        checkpoint: The checkpoint's content.
        source: What to call the checkpoint in an error.
        device: Where to.
    """
    settings = cfg.model.copy()
    if cfg.get('data_preprocessor') is not None:  # as the runner does
        settings.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = revert_sync_batchnorm(MODELS.build(settings))
    load_strictly(model, checkpoint, source)
    return model.to(device).eval()


@torch.no_grad()
def predict(model: BaseModel, item: Mapping[str, Any]) -> Any:
    """The library's data sample with the prediction for one item of the test pipeline."""
    (sample,) = model.test_step(pseudo_collate([item]))
    return sample
