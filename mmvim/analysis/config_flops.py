"""Operations and parameters of the model that a config describes."""

import math
import os
import sys
from collections.abc import Sequence

import torch
from mmengine.config import Config
from torch import nn

from mmvim.analysis.flops import Count, count_flops
from mmvim.analysis.model_views import build_model
from mmvim.errors import UserError, first_line

Shape = tuple[int, int]
# Real tensors: an image and the first features of any model, in numbers a pixel at the least.
_NUMBERS_A_PIXEL = 6


def image_shape(cfg: Config) -> Shape | None:
    """Height and width, in pixels, of the images that a model is trained on.

    Args:
        cfg (Config): Says it as ``crop_size``, ``img_size`` of the backbone or ``size`` of the
            preprocessor. The crop comes first: it is the same for every backbone of a data set.

    Returns:
        tuple[int, int] | None: None where it says nothing.
    """
    size = (
        cfg.get('crop_size')
        or cfg.model.get('backbone', {}).get('img_size')
        or (cfg.model.get('data_preprocessor') or {}).get('size')
    )
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[-1]))


def count_config(cfg: Config, shapes: Sequence[Shape]) -> tuple[nn.Module, list[Count]]:
    """Count one forward pass on an image of each size, on meta tensors where these do.

    A model that needs numbers gets real ones, and a note on stderr says so.

    Args:
        cfg (Config): Its default scope is the current one.
        shapes (Sequence[tuple[int, int]]): Height and width in pixels, after preprocessing.

    Returns:
        tuple[nn.Module, list[Count]]: The model, without weights, and a count for each size.

    Raises:
        UserError: If the model refuses images of a size, or they do not fit into memory.
    """
    try:
        return count_on(cfg, shapes, 'meta')
    except Exception as error:  # whatever a model does that needs numbers
        print(
            f'note: the model did not run on meta tensors ({first_line(error)}); counting on real '
            'ones, which takes their time',
            file=sys.stderr,
        )
    largest = max(shapes, key=math.prod, default=(0, 0))
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    if 4 * _NUMBERS_A_PIXEL * math.prod(largest) > memory:
        raise UserError(
            f'images of {largest[0]}x{largest[1]} do not fit into the memory of this machine'
        )
    try:
        return count_on(cfg, shapes, 'cpu')
    except (ValueError, MemoryError, RuntimeError) as error:
        sizes = ', '.join(f'{height}x{width}' for height, width in shapes)
        raise UserError(
            f'the model cannot be built and run on images of {sizes}: {first_line(error)}'
        ) from error


def count_on(cfg: Config, shapes: Sequence[Shape], device: str) -> tuple[nn.Module, list[Count]]:
    """The same on the tensors of one device, 'meta' for those without numbers."""
    with torch.device(device):
        model: nn.Module = build_model(cfg).to(device).eval().requires_grad_(False)
    owner = getattr(model, 'backbone', model)
    convolutions = (module for module in owner.modules() if isinstance(module, nn.Conv2d))
    first = next(convolutions, None)
    channels = 3 if first is None else first.in_channels
    torch.manual_seed(0)
    images = (torch.rand(1, channels, *shape, device=device) for shape in shapes)
    return model, [count_flops(model, image) for image in images]
