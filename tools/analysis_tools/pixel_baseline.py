"""Measure how well a classifier of single pixels and their neighbours segments the patterns."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmvim.cli.arguments import PlainParser
from mmvim.cli.prepare import make_writable
from mmvim.cli.run_tool import run_tool
from mmvim.datasets.patterns import CLASSES
from mmvim.datasets.patterns.linear_baselines import load_scenes, pixel_baseline


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write --json."""
    parser = PlainParser('Measure how well a classifier of single pixels segments the patterns.')
    parser.add_argument('data', type=Path, help='folder that make_patterns.py wrote')
    parser.add_argument('--json', type=Path, help='file for the result')
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if args.json:
        make_writable(args.json.parent, 'the folder of --json')
    result = pixel_baseline(load_scenes(args.data, 'train'), load_scenes(args.data, 'val'))
    if args.json:
        held = {'classes': CLASSES, **result._asdict()}
        args.json.write_text(json.dumps(held, indent=1) + '\n')
    title = 'Pixel baseline: logistic regression on 5x5 RGB'
    table = Table(title=title, show_footer=True, min_width=46)
    table.add_column('class', footer='mean')
    table.add_column('IoU', footer=f'{result.score:.2f}', justify='right')
    for name, iou in zip(CLASSES, result.per_class):
        table.add_row(name, '-' if iou is None else f'{iou:.2f}')
    Console().print(table)


if __name__ == '__main__':
    sys.exit(run_tool(main))
