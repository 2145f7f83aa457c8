"""Print a config as it is after inheritance and overrides."""

import sys
from collections.abc import Sequence
from pathlib import Path

from mmvim.cli.arguments import ToolParser
from mmvim.cli.config import SUFFIXES, load_config
from mmvim.cli.prepare import make_writable
from mmvim.cli.run_tool import run_tool
from mmvim.errors import UsageError


def main(argv: Sequence[str] | None = None) -> None:
    """Print the config, or save it."""
    parser = ToolParser('Print a whole config: with its bases and --cfg-options merged.')
    parser.add_argument('--save-path', metavar='F', help='write it to this .py, .json or .yaml')
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if args.save_path is not None and Path(args.save_path).suffix not in SUFFIXES:
        raise UsageError(f'--save-path must end in one of {", ".join(SUFFIXES)}: {args.save_path}')
    cfg = load_config(args.config, args.cfg_options)
    if args.save_path is None:
        print(cfg.pretty_text)
        return
    make_writable(Path(args.save_path).parent, 'the folder of --save-path')
    cfg.dump(args.save_path)
    print(f'config: {args.save_path}')


if __name__ == '__main__':
    sys.exit(run_tool(main))
