"""Convert a checkpoint of mmvim to the keys of the published Vim code."""

import sys
from collections.abc import Sequence

from mmvim.checkpoints.conversion import ours_to_published
from mmvim.cli.converter import ConverterParser, converted_file, read_source
from mmvim.cli.run_tool import run_tool
from mmvim.errors import UserError


def main(argv: Sequence[str] | None = None) -> None:
    """Read, convert, print what became of every tensor, write."""
    parser = ConverterParser('Convert a checkpoint of mmvim to the published keys.')
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    file = read_source(args.source)
    try:
        converted = ours_to_published(
            file.weights, args.cls_token, file.meta.get('cls_token'), head=not args.backbone_only
        )
    except UserError as error:
        raise type(error)(f'{args.source}: {error}') from error
    converted_file(args, converted, file, 'model')


if __name__ == '__main__':
    sys.exit(run_tool(main))
