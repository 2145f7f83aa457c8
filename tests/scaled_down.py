"""Segmentation configs small enough for a test: divided by size alone, nothing is swapped."""

import inspect
from collections.abc import Collection
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS

from mmvim.engine.cpu_processes import has_amp_accelerator
from mmvim.models import VisionMamba

# Images this high, backbones about this wide.
SIDE, WIDTH = 64, 48
WIDTH_KEYS = (
    *('embed_dim', 'embed_dims', 'in_channels', 'out_channels', 'channels', 'mla_channels'),
    *('feat_channels', 'feedforward_channels', 'post_process_channels', 'num_feats'),
)
SIZE_KEYS = ('img_size', 'size', 'crop_size', 'stride', 'scale', 'scales', 'max_size')
# Mask2Former: queries, and points at which a mask is compared.
COUNT_KEYS = ('num_queries', 'num_points')
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """``AmpOptimWrapper`` where there is no accelerator for that one."""

    def __init__(
        self, loss_scale: str | dict[str, Any], dtype: str = 'float16', **kwargs: Any
    ) -> None:
        assert loss_scale in ('dynamic', dict(enabled=False))
        super().__init__(**kwargs)
        self.dtype = getattr(torch, dtype)
        dynamic = loss_scale == 'dynamic'
        self.scaler = torch.amp.GradScaler('cpu', init_scale=2.0**10, enabled=dynamic)

    @contextmanager
    def optim_context(self, model):
        with super().optim_context(model), torch.autocast('cpu', dtype=self.dtype):
            yield

    def backward(self, loss, **kwargs):
        super().backward(self.scaler.scale(loss), **kwargs)

    def step(self, **kwargs):
        self.scaler.step(self.optimizer)
        self.scaler.update()


def divided(value: Any, factor: int) -> Any:
    """Numbers of at least 16, such as 192 or (2048, 512), divided; 3 channels stay 3."""
    if isinstance(value, list | tuple):
        return type(value)(divided(entry, factor) for entry in value)
    return value // factor if type(value) is int and value >= 16 else value


def scaled(node: Any, keys: Collection[str], factor: int) -> Any:
    """``node`` with what stands under ``keys``, at any depth, divided by ``factor``."""
    if isinstance(node, dict):
        for key, value in node.items():
            node[key] = (
                divided(value, factor) if key in keys and not isinstance(value, dict)
                else scaled(value, keys, factor)
            )  # fmt: skip
    elif isinstance(node, list):
        node[:] = [scaled(entry, keys, factor) for entry in node]
    return node


def confine(
    cfg: Config, folder: Path, batch_size: int, size_keys: Collection[str], factor: int
) -> None:
    """Have one iteration on images divided by ``factor`` run in ``folder``, in this process."""
    for name in LOADERS:
        loader = cfg[name]
        loader.update(num_workers=0, persistent_workers=False, batch_size=batch_size)
        scaled(loader.dataset, size_keys, factor)
        loader.dataset.data_root = str(folder / 'data')
    # No validation: it is the same as the test.
    length = 'max_iters' if cfg.train_cfg.get('max_iters') else 'max_epochs'
    cfg.train_cfg.update({length: 1, 'val_begin': 2})
    cfg.work_dir = str(folder / 'work_dir')
    cfg.experiment_name = folder.name
    if cfg.optim_wrapper.type == 'AmpOptimWrapper' and not has_amp_accelerator():
        cfg.optim_wrapper.type = CPUAmpOptimWrapper.__name__


def shrink(cfg: Config, folder: Path) -> None:
    """Divide widths, image sizes and counts, in place, and have one iteration run in ``folder``."""
    model, backbone = cfg.model, cfg.model.backbone
    if backbone.type == 'mmvim.VisionMamba':
        if isinstance(backbone.arch, str):
            backbone.arch = dict(VisionMamba.arch_zoo[backbone.arch])
        backbone.init_cfg = None
    width = backbone.get('arch', backbone).get('embed_dims', WIDTH)  # a ResNet is narrow enough
    scaled(model, WIDTH_KEYS, max(width // WIDTH, 1))
    if 'arch' in backbone:
        backbone.arch.d_state = 4
    scaled(model, COUNT_KEYS, 10)
    size = backbone.get('img_size') or cfg.crop_size
    factor = (size if isinstance(size, int) else min(size)) // SIDE
    scaled(model, SIZE_KEYS, factor)
    confine(cfg, folder, 2, SIZE_KEYS, factor)
    cfg.val_dataloader.batch_size = cfg.test_dataloader.batch_size = 1


def write_images(cfg: Config) -> None:
    """Two images per split where the config's datasets look for them."""
    from mmseg.registry import DATASETS

    generator = np.random.default_rng(0)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        dataset = loader.dataset
        defaults = inspect.signature(DATASETS.get(dataset.type)).parameters
        cropped = any(step.type == 'RandomCrop' for step in cfg.train_dataloader.dataset.pipeline)
        for kind, (channels, high) in dict(img=((3,), 255), seg_map=((), 9)).items():
            suffix = dataset.get(f'{kind}_suffix', defaults[f'{kind}_suffix'].default)
            folder = Path(dataset.data_root) / dataset.data_prefix[f'{kind}_path']
            folder.mkdir(parents=True)
            for i in range(2):
                # Photos come in all sizes; without a crop a batch needs one.
                width = SIDE + 20 * i * cropped
                pixels = generator.integers(0, high, (SIDE, width, *channels), dtype=np.uint8)
                assert cv2.imwrite(str(folder / f'{i}{suffix}'), pixels)
