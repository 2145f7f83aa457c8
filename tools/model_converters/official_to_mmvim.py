"""Convert a published Vim checkpoint for mmpretrain's ImageClassifier, or its backbone alone.

The released weights are their authors': convert them on your machine, do not redistribute them.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mmvim.checkpoints.conversion import published_to_ours
from mmvim.checkpoints.vim import PUBLISHED_MARK
from mmvim.cli.converter import ConverterParser, converted_file, read_source
from mmvim.cli.run_tool import run_tool
from mmvim.errors import UsageError, UserError
from mmvim.models.arguments import parse_pair
from mmvim.models.pos_embed import patch_grid
from mmvim.version import __version__


def parse_grid(
    img_size: Sequence[int] | None, patch_stride: int | None, patch: tuple[int, int]
) -> tuple[int, int] | None:
    """The patch grid asked for; None for that of the file.

    Raises:
        UsageError: If the numbers make no grid.
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
    return patch_grid(size, patch, stride)


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
    console = Console(stderr=True)
    file = read_source(args.source, console)
    weights = file.weights
    patch = next((v for k, v in weights.items() if k.endswith(PUBLISHED_MARK)), None)
    height, width = (1, 1) if patch is None else patch.shape[-2:]
    grid = parse_grid(args.img_size, args.patch_stride, (height, width))
    try:
        converted = published_to_ours(weights, args.cls_token, grid, not args.backbone_only)
    except UserError as error:
        raise UserError(f'{args.source}: {error}') from error
    meta = dict(
        mmvim_version=__version__,
        converted_from=Path(args.source).name,
        cls_token=args.cls_token,
    )
    converted_file(args, converted, file.others, console, 'state_dict', meta=meta)


if __name__ == '__main__':
    sys.exit(run_tool(main))
