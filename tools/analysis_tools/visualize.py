"""Draw what a model sees: feature maps, effective receptive field, class responses, positions."""

import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from textwrap import shorten

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from mmvim.analysis.backbone_maps import deepest_map
from mmvim.analysis.receptive_field import effective_receptive_field, log_scaled, side_of_share
from mmvim.cli.arguments import ToolParser
from mmvim.cli.model_views import NotApplicableError, Sample, Subject, untrained
from mmvim.cli.pictures import each_picture, find_images, raise_failed
from mmvim.cli.prepare import make_writable, prepare
from mmvim.cli.progress import track
from mmvim.cli.run_tool import run_tool
from mmvim.errors import UsageError

KINDS = ('taps', 'responses', 'receptive-field', 'positions')
DECADES = 6.0  # of the gradient that are drawn
TILES = 7  # maps of the position embedding per row and column, as in Fig. 7 of the ViT paper
SHARES = (0.5, 0.99)
_TITLE = 30  # characters of a class name that fit above its map


def receptive_fields(
    subject: Subject, samples: Sequence[Sample], side: int | None
) -> tuple[dict[str, Tensor], tuple[int, int]]:
    """Effective receptive fields before and after training.

    Args:
        subject: The trained model.
        samples: Images to average over.
        side: Of the central square to measure on; None for ``img_size`` of the backbone, or less.

    Returns:
        Fields (side, side) by name, and the grid of the feature map.

    Raises:
        UsageError: If an image is smaller than that.
    """
    smallest = min(min(sample.inputs.shape[-2:]) for sample in samples)
    if side is not None and side > smallest:
        raise UsageError(
            f'--field-size {side} is larger than the smallest image as the network gets it '
            f'({smallest}): give a smaller one'
        )
    side = side or min(smallest, _own_size(subject.backbone) or smallest)
    crops = [_centre(sample.inputs, side) for sample in samples]
    fields = {}
    start = untrained(subject.cfg, subject.device)
    for name, model in (('before', start), ('after', subject.model)):
        features = partial(deepest_map, model.backbone)
        fields[name] = sum(
            (
                effective_receptive_field(features, crop).cpu()
                for crop in track(crops, f'receptive field {name} training')
            ),
            start=torch.zeros(side, side),
        ) / len(crops)
    with torch.no_grad():
        rows, columns = features(crops[0]).shape[-2:]
    return fields, (rows, columns)


def _own_size(backbone: nn.Module) -> int | None:
    size = getattr(backbone, 'img_size', None)
    return size if size is None or isinstance(size, int) else min(size)


def _centre(inputs: Tensor, side: int) -> Tensor:
    """The central square (1, C, side, side) of inputs (1, C, H, W)."""
    top, left = ((pixels - side) // 2 for pixels in inputs.shape[-2:])
    return inputs[..., top : top + side, left : left + side]


def draw_maps(sample: Sample, maps: Sequence[tuple[str, Tensor]], file: Path, shared: bool) -> None:
    """The image, and each map beside it, a cell per token.

    Args:
        sample: The image.
        maps: Title and (h, w).
        file: To write.
        shared: One scale for all maps, instead of one each.
    """
    height, width = sample.picture.shape[:2]
    count = len(maps) + 1
    figure = Figure(
        figsize=(3.2 * count, 3.2 * height / width + 0.8), layout='constrained', dpi=110
    )
    axes = figure.subplots(1, count, squeeze=False)[0]
    axes[0].imshow(sample.picture)
    axes[0].set_title(sample.name)
    limits = {}
    if shared:
        limits = dict(
            vmin=min(float(entry.min()) for _, entry in maps),
            vmax=max(float(entry.max()) for _, entry in maps),
        )
    for axis, (title, entry) in zip(axes[1:], maps):
        shown = axis.imshow(
            entry.numpy(), extent=(0, width, height, 0), interpolation='nearest', **limits
        )
        axis.set_title(shorten(title, _TITLE, placeholder='…'))
        figure.colorbar(shown, ax=axis, fraction=0.046, pad=0.02)
    for axis in axes:
        axis.set_axis_off()
    figure.savefig(file)


def draw_fields(
    fields: Mapping[str, Tensor], grid: tuple[int, int], count: int, file: Path
) -> None:
    """Receptive fields beside each other, each relative to its own maximum, logarithmic."""
    figure = Figure(figsize=(4.6 * len(fields) + 0.6, 4.9), layout='constrained', dpi=130)
    axes = figure.subplots(1, len(fields), squeeze=False)[0]
    for axis, (name, field) in zip(axes, fields.items()):
        scaled = log_scaled(field, DECADES)
        axis.set_facecolor('black')  # where the gradient is exactly zero
        shown = axis.imshow(
            np.ma.masked_invalid(scaled.numpy()), vmin=-DECADES, vmax=0, cmap='viridis'
        )
        sides = ', '.join(
            f'{share:.0%} within {side_of_share(field, share, grid)} px' for share in SHARES
        )
        axis.set_title(f'{name} training\n{sides}', fontsize=10)
        axis.set(xticks=[], yticks=[])
    figure.colorbar(shown, ax=axes, label='log₁₀ of the gradient relative to its maximum')
    images = f'{count} image{"" if count == 1 else "s"}'
    figure.suptitle(f'effective receptive field of the centre token, {images}', fontsize=11)
    figure.savefig(file)


def draw_positions(similarity: Tensor, file: Path) -> None:
    """The similarity of evenly chosen patches to all patches, one small map each."""
    rows, columns = (
        np.unique(np.linspace(0, cells - 1, min(cells, TILES)).round().astype(int))
        for cells in similarity.shape[:2]
    )
    own = (
        similarity.flatten(0, 1).flatten(1).clone().fill_diagonal_(0)
    )  # a patch with itself says nothing
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
        help='blocks whose output is tapped, negatives from the end (default: the out_indices of '
        'the config, or four spread evenly where it has one alone)',
    )
    parser.add_argument(
        '--classes', type=int, default=4, metavar='N', help='responses to so many (default: 4)'
    )
    parser.add_argument(
        '--field-size',
        type=int,
        metavar='N',
        help='side of the central square of each image on which the receptive field is measured '
        '(default: img_size of the backbone, or less where an image is smaller)',
    )
    args = parser.parse_args(argv)
    for name in ('classes', 'field_size'):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f'--{name.replace("_", "-")} takes a number from 1 on; got {value}')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Draw everything asked for; what the model has no material for is said."""
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    images, out = find_images(args.images), args.out
    cfg, checkpoint = prepare(args, 'visualising', 'model', 'test_dataloader')
    source = f'checkpoint {args.checkpoint}'
    subject = Subject(cfg, args.config, checkpoint, source, args.device, args.blocks)
    samples: list[Sample] = []

    def read(image: Path) -> None:
        sample = subject.sample(image, images[image])
        subject.taps(sample)  # one that the backbone cannot take shows here
        samples.append(sample)

    failed = each_picture(images, read, 'reading')
    if not samples:
        raise_failed(failed, len(images))

    def each(folder: str, draw: Callable[[Sample, Path], None]) -> Path:
        place = make_writable(out / folder, '--out')
        for sample in track(samples, folder):
            draw(sample, place / f'{sample.name}.png')
        return place

    def taps() -> Path:
        return each('taps', lambda s, file: draw_maps(s, subject.taps(s), file, False))

    def responses() -> Path:
        count = args.classes
        return each(
            'responses',
            lambda s, file: draw_maps(s, subject.responses(s, count), file, True),
        )

    def receptive_field() -> Path:
        fields, grid = receptive_fields(subject, samples, args.field_size)
        draw_fields(fields, grid, len(samples), out / 'receptive_field.png')
        return out / 'receptive_field.png'

    def positions() -> Path:
        draw_positions(subject.positions(), out / 'positions.png')
        return out / 'positions.png'

    drawing = dict(zip(KINDS, (taps, responses, receptive_field, positions)))
    for kind in args.what or KINDS:
        try:
            print(f'{kind}: {drawing[kind]()}')
        except NotApplicableError as error:
            if args.what:
                raise
            print(f'{kind}: left out, {error}')
    raise_failed(failed, len(images))


if __name__ == '__main__':
    sys.exit(run_tool(main))
