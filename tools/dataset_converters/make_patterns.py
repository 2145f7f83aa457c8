"""Make the patterns dataset: textured objects on shaded backgrounds, for demos and tests."""

import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mmvim.cli.arguments import PlainParser
from mmvim.cli.prepare import make_writable
from mmvim.cli.progress import track
from mmvim.cli.run_tool import run_tool
from mmvim.datasets.patterns import LAYOUTS, PatternsSpec, generate
from mmvim.errors import UsageError

NUMBERS = {
    'train': 'training images',
    'val': 'validation images',
    'size': 'side in pixels',
    'seed': 'of all chance',
}


def main(argv: Sequence[str] | None = None) -> None:
    """Make the dataset, unless it is there and may be kept."""
    parser = PlainParser('Make the patterns dataset: textured objects on shaded backgrounds.')
    parser.add_argument('--out', type=Path, required=True, help='folder of the dataset')
    for name, what in NUMBERS.items():
        default = getattr(PatternsSpec, name)
        parser.add_argument(f'--{name}', type=int, default=default, help=f'{what} ({default})')
    parser.add_argument('--layouts', nargs='+', choices=LAYOUTS, default=LAYOUTS)
    parser.add_argument('--workers', type=int, default=os.cpu_count() or 1, help='processes')
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument(
        '--force', action='store_true', help='replace the patterns dataset that --out holds'
    )
    existing.add_argument(
        '--if-missing', action='store_true', help='do nothing if --out holds this very dataset'
    )
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    spec = PatternsSpec(args.train, args.val, args.size, args.seed, args.layouts)
    if args.workers < 1:
        raise UsageError(f'--workers is {args.workers}: at least 1 process is needed')

    make_writable(args.out, '--out')
    started = time.monotonic()
    written = generate(
        args.out,
        spec,
        workers=args.workers,
        if_exists='replace' if args.force else 'keep' if args.if_missing else 'refuse',
        track=partial(track, what='drawing patterns'),
    )
    how = f'written in {time.monotonic() - started:.0f} s' if written else 'already there'
    print(f'{args.out}: {how}; look at {args.out / "preview.png"}')


if __name__ == '__main__':
    sys.exit(run_tool(main))
