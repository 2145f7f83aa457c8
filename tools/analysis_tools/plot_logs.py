"""Plot loss, learning rate and metrics of several runs over the iterations."""

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mmvim.cli.arguments import PlainParser
from mmvim.cli.prepare import make_writable
from mmvim.cli.run_tool import run_tool
from mmvim.cli.training_logs import Run, find_logs, read_run, smoothed
from mmvim.errors import UsageError, UserError

DEFAULT_KEYS = ('loss', 'lr')
COLUMNS = 3
SUFFIXES = ('.png', '.pdf', '.svg')


def parse_arguments(argv: Sequence[str]) -> Namespace:
    """The command line."""
    parser = PlainParser('Plot loss, learning rate and metrics of several runs.')
    parser.add_argument(
        'runs', nargs='+', metavar='run', help='work dir of a training, or a scalars.json'
    )
    parser.add_argument('--out', required=True, type=Path, help=f'plot: {", ".join(SUFFIXES)}')
    parser.add_argument(
        '--keys',
        nargs='+',
        metavar='KEY',
        help="what to plot, a panel each; patterns such as 'loss_*' too (default: loss, lr and "
        'the metrics)',
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
    return args


def choose_keys(runs: Mapping[str, Run], asked: Sequence[str] | None) -> list[str]:
    """The keys to plot, in the order they were asked for or logged.

    Raises:
        UserError: If no run has one that was asked for.
    """
    # Whether a validation measured it, by key.
    known = {key: curve.validation for run in runs.values() for key, curve in run.curves.items()}
    if asked is None:
        return [*(k for k in DEFAULT_KEYS if k in known), *(k for k in known if known[k])]
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
    names = [name.encode(errors='replace').decode() for name in runs]  # not all are UTF-8
    handles = [Line2D([], [], color=f'C{n % 10}', label=name) for n, name in enumerate(names)]
    legend = figure.legend(handles=handles, loc='outside lower center', ncols=min(4, len(runs)))
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Read and plot; a run is called as it was given."""
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    runs = {place: read_run(find_logs(place)) for place in args.runs}
    for name, run in runs.items():
        if run.broken:
            print(f'warning: {name}: lines that cannot be read: {run.broken}', file=sys.stderr)
    keys = choose_keys(runs, args.keys)
    strange = [key for key in args.log if key not in keys]
    if strange:
        raise UsageError(f'--log: {", ".join(strange)} is not plotted: {", ".join(keys)} are')
    make_writable(args.out.parent, 'the folder of --out')
    draw(runs, keys, args.smooth, args.log).savefig(args.out)
    print(f'curves: {args.out}')


if __name__ == '__main__':
    sys.exit(run_tool(main))
