"""Convert a checkpoint of mmvim to the keys of the published code, of Vim or of VMamba."""

import sys
from collections.abc import Sequence

from mmvim.checkpoints.conversion import ours_to_published
from mmvim.cli.converter import ConverterParser, run_converter
from mmvim.cli.run_tool import run_tool


def main(argv: Sequence[str] | None = None) -> None:
    """Convert the file that the command line names."""
    run_converter(
        ConverterParser('Convert a checkpoint of mmvim to the published keys.'),
        argv,
        lambda weights, args, noted: ours_to_published(
            weights, args.cls_token, noted, head=not args.backbone_only
        ),
        'model',
    )


if __name__ == '__main__':
    sys.exit(run_tool(main))
