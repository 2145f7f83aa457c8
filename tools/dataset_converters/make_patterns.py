"""Make the patterns dataset: textured objects on shaded backgrounds, for demos and tests."""

import argparse
import os
import sys
import time
from pathlib import Path

from rich.console import Console

from mmvim.datasets.patterns import LAYOUTS, PatternsError, PatternsSpec, generate


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    defaults = PatternsSpec()
    parser.add_argument('--out', type=Path, required=True, help='folder of the dataset')
    parser.add_argument('--train', type=int, default=defaults.train, help='training images')
    parser.add_argument('--val', type=int, default=defaults.val, help='validation images')
    parser.add_argument('--size', type=int, default=defaults.size, help='side, in pixels')
    parser.add_argument('--seed', type=int, default=defaults.seed)
    parser.add_argument('--workers', type=int, default=os.cpu_count() or 1, help='processes')
    parser.add_argument('--layouts', nargs='+', choices=LAYOUTS, default=list(LAYOUTS))
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument(
        '--force', action='store_true', help='replace the patterns dataset that --out holds'
    )
    existing.add_argument(
        '--if-missing', action='store_true', help='do nothing if --out holds this very dataset'
    )
    return parser.parse_args()


def main() -> int:
    """Make the dataset; one sentence and a code other than 0 if that cannot be done."""
    args = parse_args()
    console = Console(stderr=True)
    started = time.monotonic()
    try:
        spec = PatternsSpec(args.train, args.val, args.size, args.seed, tuple(args.layouts))
        written = generate(
            args.out,
            spec,
            workers=args.workers,
            if_exists='replace' if args.force else 'keep' if args.if_missing else 'refuse',
            console=console,
        )
    except PatternsError as error:
        print(f'make_patterns: {error}', file=sys.stderr)
        return 2
    except OSError as error:
        print(f'make_patterns: cannot write to {args.out}: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f'make_patterns: interrupted; {args.out} is unfinished, --force or --if-missing '
            'begin again',
            file=sys.stderr,
        )
        return 130
    if written:
        print(f'{args.out}: written in {time.monotonic() - started:.0f} s', end='; ')
    else:
        print(f'{args.out}: already there', end='; ')
    print(f'look at {args.out / "preview.png"}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
