"""Convert a published checkpoint of Vim or VMamba for mmpretrain's ImageClassifier.

The released weights are their authors': convert them on your machine, do not redistribute them.
"""

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence

import torch

from mmvim.checkpoints.conversion import Conversion, published_to_ours
from mmvim.checkpoints.vim import PUBLISHED_MARK
from mmvim.cli.converter import ConverterParser, run_converter
from mmvim.cli.run_tool import run_tool
from mmvim.errors import UsageError
from mmvim.models.arguments import parse_pair
from mmvim.models.pos_embed import patch_grid

# Of the largest image that anybody may mean: 16384 pixels by as many, with patches of 16.
MOST_PATCHES = 1024**2


def asked_grid(args: Namespace, weights: Mapping[str, torch.Tensor]) -> tuple[int, int] | None:
    """The patch grid asked for; None for that of the file.

    Raises:
        UsageError: If the numbers make no grid, or one that is absurdly large.
    """
    if args.img_size is None and args.patch_stride is None:
        return None
    sides = args.img_size or [224]
    if len(sides) > 2:
        raise UsageError(f'--img-size takes H W, or one number for both; got {len(sides)} numbers')
    kernels = (value.shape[2:] for key, value in weights.items() if key.endswith(PUBLISHED_MARK))
    patch = next((tuple(sides) for sides in kernels if len(sides) == 2 and all(sides)), (1, 1))
    try:
        size = parse_pair('--img-size', (sides[0], sides[-1]))
        stride = (
            patch if args.patch_stride is None else parse_pair('--patch-stride', args.patch_stride)
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    rows, columns = patch_grid(size, patch, stride)
    if rows * columns > MOST_PATCHES:
        raise UsageError(
            f'--img-size {size[0]} {size[1]} makes a grid of {rows}×{columns} patches, more than '
            f'the {MOST_PATCHES} that a position embedding may have: give the size in pixels of '
            'the images that the model will see'
        )
    return rows, columns


def convert(weights: Mapping[str, torch.Tensor], args: Namespace, noted: object) -> Conversion:
    """The checkpoint in our layout, as the command line asks."""
    grid = asked_grid(args, weights)
    return published_to_ours(weights, args.cls_token, noted, grid, head=not args.backbone_only)


def main(argv: Sequence[str] | None = None) -> None:
    """Convert the file that the command line names."""
    parser = ConverterParser('Convert a published checkpoint of Vim or VMamba for mmvim.')
    parser.add_argument(
        '--img-size',
        type=int,
        nargs='+',
        metavar='N',
        help='interpolate the position embedding for images of this height and width, or of one '
        'number for both (default: leave it; with --patch-stride, 224)',
    )
    parser.add_argument(
        '--patch-stride',
        type=int,
        metavar='N',
        help='the same for this stride of the patches, such as 8 (default: the patch size)',
    )
    run_converter(parser, argv, convert, 'state_dict')


if __name__ == '__main__':
    sys.exit(run_tool(main))
