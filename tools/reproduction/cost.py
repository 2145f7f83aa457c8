"""What a training will take: operations, one timed step, and memory."""

import time
import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.structures import InstanceData, PixelData

from mmvim.analysis.config_flops import image_shape
from mmvim.analysis.flops import count_flops, count_parameters
from mmvim.analysis.model_views import build_model, untrained
from mmvim.cli.config import enter_default_scope
from mmvim.engine.cpu_processes import has_amp_accelerator
from mmvim.errors import first_line

# GPU-hours: the float32 peak of an A100 (its data sheet), and the share of it that is assumed.
PEAK, USED = 19.5e12, 0.3
PASSES = 3  # a forward pass, and twice as much for the gradients of inputs and weights
IMAGES = 2  # of the timed step: batch norm of pooled pixels needs two
MOST = 2e11  # operations of the timed step on a CPU: some ten seconds of a core
OBJECTS = 8  # in a synthetic image of a detector


class Cost(NamedTuple):
    """What one training takes.

    Attributes:
        parameters (int): Of the model.
        gpu_hours (float): Of counted operations, under the assumption above; 0 if not counted.
        hours (float, optional): On one device like that at hand; None if not timed.
        fixed (float): Gigabytes of weights, their gradients and the moments of AdamW.
        kept (float): Gigabytes that a forward pass keeps for the gradients, an image.
        note (str): Why something is missing.
    """

    parameters: int
    gpu_hours: float = 0.0
    hours: float | None = None
    fixed: float = 0.0
    kept: float = 0.0
    note: str = ''


def cost(cfg: Config, images: int, timed: bool) -> Cost:
    """Count and time a training of a config, on synthetic images of its size.

    Args:
        cfg (Config): The config.
        images (int): Over all steps and processes.
        timed (bool): Run two steps on this device, of which the second is timed.
    """
    enter_default_scope(cfg.get('default_scope'), cfg.filename)
    device = torch.device(get_device())
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the training itself repeats them
        model = _as_trained(build_model(cfg).to('meta').eval())
        found = Cost(sum(count_parameters(model).values()))
        try:
            size = tuple(image_shape(cfg) or ())
            flops = PASSES * count_flops(model, torch.empty(1, 3, *size, device='meta')).total
            found = found._replace(gpu_hours=flops * images / (PEAK * USED) / 3600)
            if timed and device.type == 'cpu' and IMAGES * flops > MOST:
                return found._replace(note='too large to be timed on this CPU')
            return _timed(cfg, size, device, images, found) if timed else found
        except Exception as error:  # whatever a model does that no table here does
            return found._replace(note=f'no estimate ({first_line(error)})')


def _as_trained(model: Any) -> Any:
    """A detector of two stages, the second on as many boxes and masks as it is trained with."""
    rcnn = (getattr(model, 'train_cfg', None) or {}).get('rcnn')
    if rcnn:
        sampler = (rcnn[0] if isinstance(rcnn, list) else rcnn)['sampler']
        model.test_cfg.rpn.max_per_img = sampler['num']
        model.test_cfg.rcnn.max_per_img = int(sampler['num'] * sampler['pos_fraction'])
    return model


def _timed(
    cfg: Config, size: tuple[int, ...], device: torch.device, images: int, found: Cost
) -> Cost:
    model = untrained(cfg, device).train()
    amp = 'Amp' in str(cfg.optim_wrapper.get('type')) and has_amp_accelerator()
    wrapper = (AmpOptimWrapper if amp else OptimWrapper)(torch.optim.AdamW(model.parameters()))
    inputs = [torch.randint(256, (3, *size), dtype=torch.uint8) for _ in range(IMAGES)]
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    # The time of this process on a CPU, which what runs beside it does not lengthen.
    on_cpu = device.type == 'cpu'
    clock = time.process_time if on_cpu else time.perf_counter
    threads = torch.get_num_threads() if on_cpu else 1

    def step() -> float:
        samples = [_sample(cfg.default_scope, size) for _ in range(IMAGES)]
        begin = clock()
        model.train_step(dict(inputs=inputs, data_samples=samples), wrapper)
        if device.type == 'cuda':
            torch.cuda.synchronize()
        return (clock() - begin) / IMAGES / threads

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    for weight in model.parameters():  # kept too, but counted once for all images
        kept.pop(weight.untyped_storage().data_ptr(), None)
    return found._replace(
        hours=step() * images / 3600,
        fixed=sum(4 * weight.nbytes for weight in model.parameters()) / 1e9,
        kept=sum(kept.values()) / IMAGES / 1e9,
    )


def _sample(scope: str, size: tuple[int, ...]) -> Any:
    """Ground truth of a synthetic image."""
    about = dict(img_shape=size, ori_shape=size, pad_shape=size, scale_factor=(1.0, 1.0))
    if scope == 'mmseg':
        from mmseg.structures import SegDataSample

        labels = PixelData(data=torch.zeros(1, *size, dtype=torch.long))
        return SegDataSample(metainfo=about, gt_sem_seg=labels)
    if scope == 'mmdet':
        from mmdet.structures import DetDataSample
        from mmdet.structures.mask import BitmapMasks

        corners = torch.rand(OBJECTS, 2) * 0.75
        sides = torch.tensor([*size[::-1], *size[::-1]])
        objects = InstanceData(
            bboxes=torch.cat([corners, corners + 0.25], dim=1) * sides,
            labels=torch.zeros(OBJECTS, dtype=torch.long),
            masks=BitmapMasks(np.ones((OBJECTS, *size), dtype=np.uint8), *size),
        )
        return DetDataSample(metainfo=about, gt_instances=objects)
    from mmpretrain.structures import DataSample

    return DataSample(metainfo=about).set_gt_label(0)
