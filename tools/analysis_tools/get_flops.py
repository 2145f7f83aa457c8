"""Count operations and parameters of a config's model, by part and image size.

The unit is that of papers, Vim's included: a multiply-accumulate (MAC) is one, so GMACs are what
papers call GFLOPs. A FLOP is one addition, multiplication or exponential: twice as many.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch import nn

from mmvim.analysis.config_flops import Shape, count_config, image_shape
from mmvim.analysis.flops import Count, count_parameters
from mmvim.cli.arguments import ToolParser
from mmvim.cli.prepare import make_writable, prepare
from mmvim.cli.run_tool import run_tool
from mmvim.errors import UsageError


def remarks(model: nn.Module, counts: Sequence[Count]) -> list[str]:
    """Notes on the numbers, and warnings of what has none."""
    found = []
    regions = ' and '.join(f'{number} {kind}' for kind, number in counts[0].regions.items())
    if regions:
        found.append(f'roi_head: {regions} an image, the most that test_cfg allows')
    elif hasattr(model, 'roi_head'):
        found.append('roi_head: as many regions as the untrained first stage proposed')
    idle = [part for part in count_parameters(model) if not any(part in c.parts for c in counts)]
    names = dict.fromkeys(name for count in counts for name in count.uncounted)
    layers = dict.fromkeys(name for count in counts for name in count.invisible)
    numbers = ', '.join(
        f'{sum(count.uncounted.values()) / 1e6:,.1f} M at {"×".join(map(str, count.shape))}'
        for count in counts
    )
    for what, which in (
        ('without counted operations, such as what runs in training only', idle),
        (f'warning: operators that were not counted ({numbers} results)', names),
        ("warning: not counted, for torch's dispatcher does not see their kernels", layers),
    ):
        if which:
            found.append(f'{what}: {", ".join(which)}')
    return found


def to_table(model: nn.Module, counts: Sequence[Count]) -> Table:
    """One row per part, for every size MACs and their share."""
    parameters = count_parameters(model)
    table = Table('part', title='GMACs: multiply-accumulates, what papers call GFLOPs')
    table.add_column('parameters', justify='right')
    for found in counts:
        table.add_column('×'.join(map(str, found.shape)), justify='right')
        table.add_column('share', justify='right')

    def add(title: str, numbers: str, operations: Sequence[float], shares: bool = True) -> None:
        cells = [f'{number / 1e9:,.3f}' for number in operations]
        of_all = [f'{200 * n / max(c.total, 1):.1f}%' for n, c in zip(operations, counts)]
        columns = zip(cells, of_all if shares else [''] * len(counts))
        table.add_row(title, numbers, *(cell for column in columns for cell in column))

    for part in dict.fromkeys([*(part for found in counts for part in found.parts), *parameters]):
        macs = [found.parts.get(part, 0) / 2 for found in counts]
        add(part, f'{parameters.get(part, 0):,}', macs)
    table.add_section()
    add('total', f'{sum(parameters.values()):,}', [found.total / 2 for found in counts])
    add('total in GFLOPs', '', [found.total for found in counts], shares=False)
    scans = [found.paper_scan_macs for found in counts]
    if all(scans):
        add('scan, 3M(2D)N + M(2D)N (paper)', '', scans, shares=False)
    return table


def to_json(model: nn.Module, counts: Sequence[Count]) -> str:
    """Everything, in whole FLOPs; a MAC is two of them."""
    parameters = count_parameters(model)
    content = dict(
        unit='FLOPs: an addition, multiplication or exponential is one; a MAC is two',
        remarks=remarks(model, counts),
        parameters=dict(total=sum(parameters.values()), parts=parameters),
        sizes=[dict(asdict(found), flops=found.total, macs=found.total / 2) for found in counts],
    )
    return json.dumps(content, indent=2) + '\n'


def parse_shape(values: Sequence[int]) -> Shape:
    """``--shape`` with one number or two."""
    if len(values) > 2 or min(values) < 1:
        given = ' '.join(map(str, values))
        raise UsageError(f'--shape takes H W, or one number for both, from 1 on; got {given}')
    return (values[0], values[-1])


def main(argv: Sequence[str] | None = None) -> None:
    """Count, print the table, write --out."""
    parser = ToolParser("Count operations and parameters of a config's model, by part.")
    parser.add_argument(
        '--shape',
        nargs='+',
        type=int,
        action='append',
        metavar='N',
        help='height and width in pixels, after preprocessing, or one number for both; several '
        "times for several sizes (default: crop_size of the config, or the backbone's img_size)",
    )
    parser.add_argument(
        '--out', dest='file', metavar='F', help='write everything to this .json too'
    )
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if args.file is not None and Path(args.file).suffix != '.json':
        raise UsageError(f'--out must end in .json: {args.file}')
    shapes = [parse_shape(values) for values in args.shape or ()]
    cfg, _ = prepare(args, 'counting', 'model')
    if not shapes:
        shape = image_shape(cfg)
        if shape is None:
            raise UsageError(
                f'{args.config} does not say how large its images are: give --shape H W'
            )
        shapes = [shape]
    if args.file is not None:
        make_writable(Path(args.file).parent, 'the folder of --out')

    model, counts = count_config(cfg, list(dict.fromkeys(shapes)))
    console = Console(width=max(90, 44 + 20 * len(counts)), highlight=False)
    console.print(to_table(model, counts))
    print('\n'.join(remarks(model, counts)))
    if args.file is not None:
        Path(args.file).write_text(to_json(model, counts))
        print(f'counts: {args.file}')


if __name__ == '__main__':
    sys.exit(run_tool(main))
