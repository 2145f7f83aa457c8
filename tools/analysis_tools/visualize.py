"""Draw what a model sees: feature maps, effective receptive field, class responses, positions."""

import math
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.utils import to_2tuple
from torch import Tensor, nn

from mmvim.analysis.backbone_maps import feature_maps, tap_indices
from mmvim.analysis.model_views import (
    NotApplicableError,
    class_responses,
    position_similarity,
    token_strengths,
    untrained,
)
from mmvim.analysis.receptive_field import effective_receptive_field
from mmvim.cli.arguments import ToolParser
from mmvim.cli.pictures import (
    dataset_meta,
    each_picture,
    find_images,
    raise_failed,
    read_item,
    to_rgb,
)
from mmvim.cli.prepare import load_model, make_writable, prepare
from mmvim.cli.progress import track
from mmvim.cli.run_tool import run_tool
from mmvim.datasets.pipelines import pipeline_owner
from mmvim.errors import UserError

KINDS = ('taps', 'responses', 'receptive-field', 'positions')
CLASSES = 4  # that respond most
SMALLEST = 1e-6  # share of the largest gradient that is told from less
TILES = 7  # maps of the position embedding per row and column, as in Fig. 7 of the ViT paper
HIGHEST = 8.0  # a picture over its width, where it is drawn
_TITLE = 30  # characters of a class name that fit above its map


class Sample(NamedTuple):
    """An image as the network gets it."""

    name: str  # for the files
    picture: np.ndarray  # (H, W, 3), uint8, RGB, padded like the input
    inputs: Tensor  # (1, C, H, W), preprocessed


def read_sample(model: Any, pipeline: Sequence[Any], image: Path, name: str) -> Sample:
    """Run the test pipeline and the data preprocessor on an image file."""
    item, _ = read_item(pipeline, image)
    picture = to_rgb(item['inputs'].numpy().transpose(1, 2, 0), pipeline)
    inputs = model.data_preprocessor(pseudo_collate([item]), False)['inputs']
    if not isinstance(inputs, Tensor):
        inputs = torch.stack(list(inputs))
    rows, columns = (total - own for total, own in zip(inputs.shape[-2:], picture.shape[:2]))
    return Sample(name, np.pad(picture, ((0, rows), (0, columns), (0, 0))), inputs)


def receptive_fields(cfg: Config, model: Any, samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Effective receptive fields before and after training, on the central square of the images.

    Returns:
        dict[str, Tensor]: Shape (S, S), where S is ``img_size`` of the backbone, or less where an
        image is smaller.
    """
    size = to_2tuple(getattr(model.backbone, 'img_size', None) or math.inf)
    side = min(*size, *(pixels for sample in samples for pixels in sample.inputs.shape[-2:]))
    fields = {}
    device = samples[0].inputs.device
    for name, owner in (('before', untrained(cfg, device)), ('after', model)):
        last_map = partial(_last_map, owner.backbone)
        fields[name] = torch.zeros(side, side)
        for sample in track(samples, f'receptive field {name} training'):
            top, left = ((pixels - side) // 2 for pixels in sample.inputs.shape[-2:])
            crop = sample.inputs[..., top : top + side, left : left + side]
            fields[name] += effective_receptive_field(last_map, crop).cpu() / len(samples)
    return fields


def _last_map(backbone: nn.Module, images: Tensor) -> Tensor:
    return feature_maps(backbone, images)[0]


def draw_maps(sample: Sample, maps: Mapping[str, Tensor], file: Path, shared: bool) -> None:
    """The image, and each map (h, w) beside it by title; ``shared``: one scale for all maps."""
    height, width = sample.picture.shape[:2]
    count = len(maps) + 1
    tall = 3.2 * min(height / width, HIGHEST) + 0.8
    figure = Figure(figsize=(3.2 * count, tall), layout='constrained', dpi=110)
    axes = figure.subplots(1, count, squeeze=False)[0]
    axes[0].imshow(sample.picture)
    name = sample.name.encode(errors='replace').decode()  # a name may be no UTF-8
    axes[0].set_title(name, parse_math=False)  # nor is a $ a formula
    limits = {}
    if shared:
        limits = dict(
            vmin=min(float(entry.min()) for entry in maps.values()),
            vmax=max(float(entry.max()) for entry in maps.values()),
        )
    for axis, (title, entry) in zip(axes[1:], maps.items()):
        shown = axis.imshow(
            entry.numpy(), extent=(0, width, height, 0), interpolation='nearest', **limits
        )
        axis.set_title(shorten(title, _TITLE, placeholder='…'), parse_math=False)
        figure.colorbar(shown, ax=axis, fraction=0.046, pad=0.02)
    for axis in axes:
        axis.set_axis_off()
    figure.savefig(file)


def draw_fields(fields: Mapping[str, Tensor], count: int, file: Path) -> None:
    """Receptive fields beside each other, each relative to its own maximum, logarithmic."""
    figure = Figure(figsize=(4.6 * len(fields) + 0.6, 4.9), layout='constrained', dpi=130)
    axes = figure.subplots(1, len(fields), squeeze=False)[0]
    for axis, (name, field) in zip(axes, fields.items()):
        values = np.ma.masked_equal(field.numpy(), 0)
        axis.set_facecolor('black')  # where the gradient is exactly zero
        shown = axis.imshow(values / values.max(), norm=LogNorm(SMALLEST, 1, clip=True))
        axis.set_title(f'{name} training', fontsize=10)
        axis.set(xticks=[], yticks=[])
    figure.colorbar(shown, ax=axes, label='gradient relative to its maximum')
    images = f'{count} image{"" if count == 1 else "s"}'
    figure.suptitle(f'effective receptive field of the centre token, {images}', fontsize=11)
    figure.savefig(file)


def draw_positions(similarity: Tensor, file: Path) -> None:
    """The similarity of evenly chosen patches to all patches, one small map each."""
    rows, columns = (
        np.unique(np.linspace(0, cells - 1, min(cells, TILES)).round().astype(int))
        for cells in similarity.shape[:2]
    )
    # A patch with itself says nothing.
    own = similarity.flatten(0, 1).flatten(1).clone().fill_diagonal_(0)
    limit = float(own.abs().max()) or 1.0
    figure = Figure(figsize=(7.2, 6.4), layout='constrained', dpi=130)
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for row, line in zip(rows, axes):
        for column, axis in zip(columns, line):
            shown = axis.imshow(
                similarity[row, column].numpy(), vmin=-limit, vmax=limit, cmap='RdBu_r'
            )
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(f'{row}, {column}', fontsize=6, labelpad=1)
    figure.colorbar(shown, ax=axes, label='cosine similarity to the others')
    figure.suptitle('position embedding: patch in row, column against all patches', fontsize=11)
    figure.savefig(file)


def parse_arguments(argv: Sequence[str]) -> Namespace:
    """The command line."""
    parser = ToolParser('Draw what a model sees, from any config and checkpoint.')
    parser.add_checkpoint()
    parser.add_pictures()
    parser.add_out('the pictures')
    parser.add_argument(
        '--what',
        nargs='+',
        choices=KINDS,
        help='taps: strength (norm) of every token of the feature maps; responses: of every token '
        'to the classes; receptive-field: gradient of the centre token, before (random start) and '
        'after training; positions: similarity of the position embedding '
        '(default: all that the model has material for)',
    )
    parser.add_argument(
        '--blocks',
        nargs='+',
        type=int,
        metavar='I',
        help='blocks, or stages, whose output is tapped, negatives from the end (default: the '
        'out_indices of the config, or four spread evenly where it has one alone)',
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw everything asked for; what does not apply to the model is skipped with a message."""
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    images, out = find_images(args.images), args.out
    cfg, checkpoint = prepare(args, 'visualising', 'model', 'test_dataloader')
    model = load_model(cfg, args, checkpoint)
    if not isinstance(getattr(model, 'backbone', None), nn.Module):
        raise UserError(f'{type(model).__name__} has no backbone to look at')
    indices = tap_indices(model.backbone, args.blocks)
    classes = dataset_meta(cfg, checkpoint).get('classes')
    owner = pipeline_owner(cfg.test_dataloader.dataset, f'visualising {args.config}')
    samples: list[Sample] = []

    def read(image: Path) -> None:
        sample = read_sample(model, owner.pipeline, image, images[image])
        token_strengths(model.backbone, sample.inputs, indices)  # fails for what is too small
        samples.append(sample)

    failed = each_picture(images, read, 'reading')
    if not samples:
        raise_failed(failed, len(images))

    def each(folder: str, views: Callable[[Tensor], dict[str, Tensor]], shared: bool) -> Path:
        place = make_writable(out / folder, '--out')
        for sample in track(samples, folder):
            draw_maps(sample, views(sample.inputs), place / f'{sample.name}.png', shared)
        return place

    def responses(inputs: Tensor) -> dict[str, Tensor]:
        found = class_responses(model, inputs, CLASSES)
        return {str(classes[i]) if classes else f'class {i}': maps for i, maps in found.items()}

    def draw(kind: str) -> Path:
        if kind == 'taps':
            return each(kind, lambda x: token_strengths(model.backbone, x, indices), False)
        if kind == 'responses':
            return each(kind, responses, True)
        file = out / f'{kind.replace("-", "_")}.png'
        if kind == 'positions':
            draw_positions(position_similarity(model.backbone), file)
        else:
            draw_fields(receptive_fields(cfg, model, samples), len(samples), file)
        return file

    for kind in args.what or KINDS:
        try:
            print(f'{kind}: {draw(kind)}')
        except NotApplicableError as error:
            if args.what:
                raise
            print(f'{kind}: skipped, {error}')
    raise_failed(failed, len(images))


if __name__ == '__main__':
    sys.exit(run_tool(main))
