"""Plot loss, learning rate and metrics of several runs over the iterations."""

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmvim.cli.arguments import PlainParser
from mmvim.cli.prepare import make_writable
from mmvim.cli.run_tool import run_tool
from mmvim.cli.training_logs import Run, find_logs, read_run, smoothed
from mmvim.errors import UsageError, UserError

DEFAULT_KEYS = ('loss', 'lr')
MOST_METRICS = 6  # drawn where no keys are given
COLUMNS = 3
SUFFIXES = ('.png', '.pdf', '.svg')


def parse_arguments(argv: Sequence[str]) -> Namespace:
    """The command line."""
    parser = PlainParser('Plot loss, learning rate and metrics of several runs.')
    parser.add_argument(
        'runs', nargs='+', metavar='run', help='work dir of a training, or a scalars.json'
    )
    parser.add_argument('--out', required=True, type=Path, help=f'plot: {", ".join(SUFFIXES)}')
    parser.add_argument('--names', nargs='+', help='of the runs (default: from their paths)')
    parser.add_argument(
        '--keys',
        nargs='+',
        metavar='KEY',
        help="what to plot, a panel each; patterns such as 'loss_*' too (default: loss, lr and "
        f'the first {MOST_METRICS} metrics)',
    )
    parser.add_argument(
        '--log', nargs='+', default=[], metavar='KEY', help='keys with a logarithmic axis'
    )
    parser.add_argument(
        '--smooth',
        type=float,
        default=0.0,
        metavar='W',
        help='weight of the past in a moving average, in [0, 1), of what is logged in training, '
        'learning rates apart; what was logged stays faintly (default: 0, none)',
    )
    args = parser.parse_args(argv)
    if not 0 <= args.smooth < 1:
        raise UsageError(f'--smooth takes a number in [0, 1); got {args.smooth:g}')
    if args.out.suffix not in SUFFIXES:
        raise UsageError(f'--out must end in one of {", ".join(SUFFIXES)}: {args.out}')
    if args.names is not None and len(args.names) != len(args.runs):
        raise UsageError(f'--names gives {len(args.names)} names to {len(args.runs)} runs')
    if args.names is not None and len(set(args.names)) < len(args.names):
        raise UsageError(f'--names gives a name twice: {" ".join(args.names)}')
    return args


def default_names(runs: Sequence[str]) -> list[str]:
    """The last parts of the paths, as many as tell them apart.

    Raises:
        UsageError: If one run is given twice.
    """
    paths = [Path(run).expanduser().resolve() for run in runs]
    if len(set(paths)) < len(paths):
        raise UsageError(f'a run is given twice: {" ".join(runs)}')
    count = 1
    while len({path.parts[-count:] for path in paths}) < len(paths):
        count += 1
    return ['/'.join(path.parts[-count:]) for path in paths]


def choose_keys(runs: Mapping[str, Run], asked: Sequence[str] | None) -> list[str]:
    """The keys to plot, in the order they were asked for or logged.

    Raises:
        UserError: If no run has one that was asked for.
    """
    known = list(dict.fromkeys(key for run in runs.values() for key in run.curves))
    if asked is None:
        measured = {
            key for run in runs.values() for key, curve in run.curves.items() if curve.validation
        }
        metrics = [key for key in known if key in measured]
        if len(metrics) > MOST_METRICS:
            print(f'left out, for --keys: {", ".join(metrics[MOST_METRICS:])}', file=sys.stderr)
        return [key for key in DEFAULT_KEYS if key in known] + metrics[:MOST_METRICS]
    found: list[str] = []
    for pattern in asked:
        fitting = [key for key in known if fnmatchcase(key, pattern)]
        if not fitting:
            raise UserError(f'no run logged {pattern}: there are {", ".join(known)}')
        found += fitting
    return list(dict.fromkeys(found))


def draw(runs: Mapping[str, Run], keys: Sequence[str], smooth: float, log: Sequence[str]) -> Figure:
    """One panel per key, one colour per run."""
    columns = min(COLUMNS, len(keys))
    rows = -(-len(keys) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.4 * rows + 0.4), layout='constrained', dpi=130)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, key in zip(axes, keys):
        for number, (name, run) in enumerate(runs.items()):
            curve = run.curves.get(key)
            if curve is None:
                continue
            colour = f'C{number % 10}'
            values = curve.values
            if smooth and not curve.validation and not key.endswith('lr'):
                axis.plot(curve.steps, values, color=colour, alpha=0.25, linewidth=0.8)
                values = smoothed(values, smooth)
            marker = 'o' if curve.validation or len(values) == 1 else None
            axis.plot(curve.steps, values, color=colour, label=name, marker=marker, markersize=3)
        axis.set_title(key, parse_math=False)  # a $ is no formula
        axis.set_xlabel('iteration')
        if key in log:
            axis.set_yscale('log')
        axis.grid(alpha=0.3)
    for axis in axes[len(keys) :]:
        axis.set_axis_off()
    handles = [
        axes[0].plot([], [], color=f'C{number % 10}', label=name)[0]
        for number, name in enumerate(runs)
    ]
    legend = figure.legend(handles=handles, loc='outside lower center', ncols=min(4, len(runs)))
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def to_table(runs: Mapping[str, Run], keys: Sequence[str]) -> Table:
    """The last value of every key, and the highest one of what a validation measured."""
    table = Table('run')
    for title in ('iterations', *keys):
        table.add_column(Text(title), justify='right')
    for name, run in runs.items():
        cells = [str(max(curve.steps[-1] for curve in run.curves.values()))]
        for key in keys:
            curve = run.curves.get(key)
            cells.append('–' if curve is None else f'{curve.values[-1]:.4g}')
            if curve is not None and curve.validation:
                cells[-1] += f' (highest {max(curve.values):.4g})'
        table.add_row(Text(name), *cells)
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Read, print the last values, plot."""
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    names = args.names or default_names(args.runs)
    runs = {name: read_run(find_logs(place)) for name, place in zip(names, args.runs)}
    for name, run in runs.items():
        if run.broken:
            print(f'warning: {name}: lines that cannot be read: {run.broken}', file=sys.stderr)
    keys = choose_keys(runs, args.keys)
    strange = [key for key in args.log if key not in keys]
    if strange:
        raise UsageError(f'--log: {", ".join(strange)} is not plotted: {", ".join(keys)} are')
    make_writable(args.out.parent, 'the folder of --out')
    Console(highlight=False).print(to_table(runs, keys))
    draw(runs, keys, args.smooth, args.log).savefig(args.out)
    print(f'curves: {args.out}')


if __name__ == '__main__':
    sys.exit(run_tool(main))
