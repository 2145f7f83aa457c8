"""Measure how well a classifier of single pixels and their neighbours segments the patterns."""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmvim.datasets.patterns import PatternsError
from mmvim.datasets.patterns.pixel_baseline import BaselineResult, load_split, pixel_baseline


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('data', type=Path, help='folder that make_patterns.py wrote')
    parser.add_argument('--json', type=Path, help='file for the result')
    parser.add_argument('--seed', type=int, default=0, help='seed of the training sample')
    return parser.parse_args()


def to_table(result: BaselineResult) -> Table:
    """The result as a table."""
    means = result.miou_by_weighting
    table = Table(
        title='Pixel baseline: logistic regression on 5x5 RGB',
        caption=f'mIoU with equal pixels {means["pixels"]:.2f}, '
        f'with equal classes {means["classes"]:.2f};\nthe better one is shown',
        show_footer=True,
        min_width=46,
    )
    table.add_column('class', footer='mean')
    table.add_column('IoU', footer=f'{result.miou:.2f}', justify='right')
    for name, iou in zip(result.classes, result.iou, strict=True):
        table.add_row(name, '-' if iou is None else f'{iou:.2f}')
    return table


def main() -> int:
    """Measure and print; one sentence and a code other than 0 if that cannot be done."""
    args = parse_args()
    try:
        train, val = load_split(args.data, 'training'), load_split(args.data, 'validation')
        result = pixel_baseline(train, val, seed=args.seed)
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(result.to_json(), indent=1) + '\n')
    except PatternsError as error:
        print(f'pixel_baseline: {error}', file=sys.stderr)
        return 2
    except OSError as error:
        print(f'pixel_baseline: cannot write {args.json}: {error}', file=sys.stderr)
        return 1
    Console().print(to_table(result))
    return 0


if __name__ == '__main__':
    sys.exit(main())
