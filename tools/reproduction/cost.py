"""What a training will take: operations, one timed step, and the memory of a batch."""

import time
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.structures import InstanceData, PixelData

from mmvim.analysis.flops import count_flops, count_parameters
from mmvim.analysis.model_views import build_model, untrained
from mmvim.cli.config import enter_default_scope
from mmvim.datasets.pipelines import pipeline_owner
from mmvim.engine.cpu_processes import has_amp_accelerator
from mmvim.errors import first_line

# GPU-hours: the float32 peak of an A100 (its data sheet), and the share of it that is assumed.
PEAK, USED = 19.5e12, 0.3
# Images of the timed step: batch norm of pooled pixels needs two.
IMAGES = 2
# Operations of a step that a CPU is asked for: some seconds of one core.
MOST = 1e11
# A forward pass, and twice as much for the gradients of inputs and weights.
PASSES = 3
_OBJECTS = 8  # in a synthetic image of a detector


class Cost(NamedTuple):
    """What one training takes.

    Attributes:
        parameters (int): Of the model.
        images (int): Over all steps and processes.
        flops (float): Operations of a training step on one image, by the counter.
        seconds (float, optional): Of a timed training step on this device, for one image; None if
            it was not timed.
        bytes (tuple[float, float]): Memory: of the weights, their gradients and AdamW's moments,
            and what one image's forward pass keeps for the gradients; zeros if it was not timed.
        note (str): Why something is missing.
    """

    parameters: int
    images: int
    flops: float = 0.0
    seconds: float | None = None
    bytes: tuple[float, float] = (0.0, 0.0)
    note: str = ''

    @property
    def gpu_hours(self) -> float:
        """From the operations alone, under the assumption above."""
        return self.flops * self.images / (PEAK * USED) / 3600

    @property
    def hours(self) -> float | None:
        """On one device like that at hand, if it was timed."""
        return None if self.seconds is None else self.seconds * self.images / 3600

    def memory(self, batch: int) -> float:
        """Gigabytes for so many images a process."""
        return (self.bytes[0] + batch * self.bytes[1]) / 1e9


def cost(cfg: Config, batch: int, epoch: int, timed: bool = True) -> Cost:
    """Count and time a training of the config, on synthetic images of its size.

    Args:
        cfg (Config): The config.
        batch (int): Images of a step over all processes.
        epoch (int): Images of an epoch, where the schedule counts epochs.
        timed (bool): Run two steps, of which the second is timed. Defaults to True.
    """
    loop = cfg.train_cfg
    steps = loop.get('max_iters')
    images = steps * batch if steps else loop['max_epochs'] * epoch
    enter_default_scope(cfg.get('default_scope'), cfg.filename)
    device = torch.device(get_device())
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the training itself repeats them
        model = build_model(cfg).to('meta').eval()
        found = Cost(sum(count_parameters(model).values()), images)
        try:
            size = _size(cfg)
            flops = PASSES * count_flops(model, torch.empty(1, 3, *size, device='meta')).total
            found = found._replace(flops=float(flops))
            if timed and device.type == 'cpu' and IMAGES * flops > MOST:
                return found._replace(note='too large to be timed on this CPU')
            return _timed(cfg, size, device, found) if timed else found
        except Exception as error:  # whatever a model does that no table here does
            return found._replace(note=f'no estimate ({first_line(error)})')


def _size(cfg: Config) -> tuple[int, int]:
    """Height and width of the training images."""

    def steps(node: Any) -> Iterator[Any]:
        for step in node:
            yield from steps(step) if isinstance(step, list | tuple) else [step]
            yield from steps(step.get('transforms', ())) if isinstance(step, dict) else ()

    pipeline = pipeline_owner(cfg.train_dataloader.dataset, 'an estimate').pipeline
    keys = ('crop_size', 'scale')
    sizes = [step[key] for step in steps(pipeline) for key in keys if step.get(key)]
    padded = (cfg.model.get('data_preprocessor') or {}).get('size')
    size = sizes[-1] if sizes else padded or cfg.model.backbone.img_size
    return (size, size) if isinstance(size, int) else tuple(size)


def _sample(scope: str, size: tuple[int, int]) -> Any:
    """Ground truth of a synthetic image."""
    about = dict(img_shape=size, ori_shape=size, pad_shape=size, scale_factor=(1.0, 1.0))
    if scope == 'mmseg':
        from mmseg.structures import SegDataSample

        labels = PixelData(data=torch.zeros(1, *size, dtype=torch.long))
        return SegDataSample(metainfo=about, gt_sem_seg=labels)
    if scope == 'mmdet':
        from mmdet.structures import DetDataSample
        from mmdet.structures.mask import BitmapMasks

        corner = torch.rand(_OBJECTS, 2) * 0.75
        boxes = torch.cat([corner, corner + 0.25], dim=1) * torch.tensor([*size[::-1], *size[::-1]])
        masks = BitmapMasks(np.ones((_OBJECTS, *size), dtype=np.uint8), *size)
        labels = torch.zeros(_OBJECTS, dtype=torch.long)
        objects = InstanceData(bboxes=boxes, labels=labels, masks=masks)
        return DetDataSample(metainfo=about, gt_instances=objects)
    from mmpretrain.structures import DataSample

    return DataSample(metainfo=about).set_gt_label(0)


def _timed(cfg: Config, size: tuple[int, int], device: torch.device, found: Cost) -> Cost:
    model = untrained(cfg, device).train()
    amp = 'Amp' in str(cfg.optim_wrapper.get('type')) and has_amp_accelerator()
    optimizer = torch.optim.AdamW(model.parameters())
    wrapper = (AmpOptimWrapper if amp else OptimWrapper)(optimizer)
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def step() -> float:
        images = [torch.randint(256, (3, *size), dtype=torch.uint8) for _ in range(IMAGES)]
        samples = [_sample(cfg.default_scope, size) for _ in range(IMAGES)]
        begin = time.perf_counter()
        model.train_step(dict(inputs=images, data_samples=samples), wrapper)
        if device.type == 'cuda':
            torch.cuda.synchronize()
        return (time.perf_counter() - begin) / IMAGES

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    states = sum(4 * p.numel() * p.element_size() for p in model.parameters())
    return found._replace(seconds=step(), bytes=(float(states), sum(kept.values()) / IMAGES))
