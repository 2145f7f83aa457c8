"""Measure how well a classifier of single pixels and their neighbours segments the patterns."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmvim.cli.arguments import PlainParser
from mmvim.cli.prepare import make_writable
from mmvim.cli.run_tool import run_tool
from mmvim.datasets.patterns.linear_baselines import BaselineResult, load_scenes, pixel_baseline


def to_table(result: BaselineResult) -> Table:
    """The result as a table."""
    table = Table(
        title='Pixel baseline: logistic regression on 5x5 RGB',
        caption=f'mIoU with equal pixels {result.scores["pixels"]:.2f}, '
        f'with equal classes {result.scores["classes"]:.2f};\nthe better one is shown',
        show_footer=True,
        min_width=46,
    )
    table.add_column('class', footer='mean')
    table.add_column('IoU', footer=f'{result.score:.2f}', justify='right')
    for name, iou in zip(result.classes, result.per_class):
        table.add_row(name, '-' if iou is None else f'{iou:.2f}')
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write --json."""
    parser = PlainParser('Measure how well a classifier of single pixels segments the patterns.')
    parser.add_argument('data', type=Path, help='folder that make_patterns.py wrote')
    parser.add_argument('--json', type=Path, help='file for the result')
    parser.add_argument('--seed', type=int, default=0, help='seed of the training sample')
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if args.json:
        make_writable(args.json.parent, 'the folder of --json')
    train, val = load_scenes(args.data, 'train'), load_scenes(args.data, 'val')
    result = pixel_baseline(train, val, seed=args.seed)
    if args.json:
        args.json.write_text(json.dumps(asdict(result), indent=1) + '\n')
    Console().print(to_table(result))


if __name__ == '__main__':
    sys.exit(run_tool(main))
