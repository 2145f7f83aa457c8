"""Convert a published Vim checkpoint for mmpretrain's ImageClassifier, or its backbone alone.

The released weights are their authors': convert them on your machine, do not redistribute them.
"""

import sys
from collections.abc import Sequence

from mmvim.checkpoints.conversion import published_to_ours
from mmvim.checkpoints.vim import PUBLISHED_MARK
from mmvim.cli.converter import ConverterParser, converted_file, read_source
from mmvim.cli.run_tool import run_tool
from mmvim.errors import UsageError, UserError
from mmvim.models.arguments import parse_pair
from mmvim.models.pos_embed import patch_grid

# Of the largest image that anybody may mean: 16384 pixels by as many, with patches of 16.
MOST_PATCHES = 1024**2


def parse_grid(
    img_size: Sequence[int] | None, patch_stride: int | None, patch: tuple[int, int]
) -> tuple[int, int] | None:
    """The patch grid asked for; None for that of the file.

    Raises:
        UsageError: If the numbers make no grid, or one that is absurdly large.
    """
    if img_size is None and patch_stride is None:
        return None
    sides = img_size or [224]
    if len(sides) > 2:
        raise UsageError(f'--img-size takes H W, or one number for both; got {len(sides)} numbers')
    try:
        size = parse_pair('--img-size', (sides[0], sides[-1]))
        stride = patch if patch_stride is None else parse_pair('--patch-stride', patch_stride)
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


def main(argv: Sequence[str] | None = None) -> None:
    """Read, convert, print what became of every tensor, write."""
    parser = ConverterParser('Convert a published Vim checkpoint for mmvim.')
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
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    file = read_source(args.source)
    patch = next((v for k, v in file.weights.items() if k.endswith(PUBLISHED_MARK)), None)
    height, width = (
        (1, 1) if patch is None or patch.ndim != 4 or not patch.numel() else patch.shape[-2:]
    )
    grid = parse_grid(args.img_size, args.patch_stride, (height, width))
    try:
        converted = published_to_ours(
            file.weights,
            args.cls_token,
            file.meta.get('cls_token'),
            grid,
            head=not args.backbone_only,
        )
    except UserError as error:
        raise type(error)(f'{args.source}: {error}') from error
    converted_file(args, converted, file, 'state_dict')


if __name__ == '__main__':
    sys.exit(run_tool(main))
