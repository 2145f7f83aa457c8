"""Reproduce tables of results: check, estimate, train, test, and set measured beside published.

Every row is a config, trained and tested in processes of its own. Interrupted, the same command
goes on where it was; what is finished, here or by ``tools/train.py`` elsewhere, is not run again.
"""

from demos import interruptible  # first: what follows takes seconds to import

# isort: split
import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from reproduction import report, training
from reproduction.cost import PEAK, USED, Cost, cost
from reproduction.plan import Run, plan
from reproduction.tables import PLACES, ROOT, TABLES, rows
from rich.console import Console
from rich.table import Table

from mmvim.cli.arguments import PlainParser
from mmvim.cli.prepare import make_writable
from mmvim.cli.run_tool import run_tool
from mmvim.errors import UsageError, UserError


def parse_arguments(argv: Sequence[str]) -> Namespace:
    """The command line; all that is misspelt is refused."""
    parser = PlainParser('Reproduce tables of results, measured beside published.')
    known = ', '.join(TABLES)
    parser.add_argument('tables', nargs='*', metavar='TABLE', help=f'{known} (default: all)')
    parser.add_argument(
        '--data-root',
        nargs='+',
        default=[],
        metavar='NAME=PATH',
        help=f'where data or released weights are: {", ".join(PLACES)} '
        f'(default: {", ".join(place.root for place in PLACES.values())})',
    )
    who = parser.add_mutually_exclusive_group()
    who.add_argument('--gpus', type=int, help='train each row on so many GPUs of this machine')
    who.add_argument(
        '--launcher', choices=['slurm'], help='by tools/slurm_train.sh, in $PARTITION, on $GPUS'
    )
    parser.add_argument('--dry-run', action='store_true', help='check and estimate, then end')
    parser.add_argument('--out', default=training.OUT, type=Path, help='default: %(default)s')
    parser.add_argument('--seeds', type=int, nargs='+', help="instead of the rows' own")
    parser.add_argument(
        '--rows', nargs='+', default=['*'], metavar='PATTERN', help='some of them, as the shell'
    )
    parser.add_argument(
        '--test-only',
        action='store_true',
        help='train nothing: test what is trained, here or elsewhere, beside trainings under way',
    )
    parser.add_argument(
        '--copy',
        action='store_true',
        help='run nothing: show the results in --out in READMEs and metafiles of the configs',
    )
    args = parser.parse_args(argv)
    args.tables = args.tables or list(TABLES)
    for table in args.tables:
        if table not in TABLES:
            raise UsageError(f'there is no table {table}: the tables are {known}')
    pairs = [pair.partition('=') for pair in args.data_root]
    args.data_root = {name: str(Path(path).expanduser()) for name, _, path in pairs}
    for name, path in args.data_root.items():
        if name not in PLACES:
            raise UsageError(f'--data-root {name}=…: the names are {", ".join(PLACES)}')
        if not Path(path).is_dir():
            raise UsageError(f'--data-root {name}={path}: there is no such folder')
    names = [row.name for table in args.tables for row in rows(table)]
    for pattern in args.rows:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(f'--rows {pattern} fits none of {", ".join(names)}')
    args.rows = [name for name in names if any(fnmatchcase(name, p) for p in args.rows)]
    args.out = args.out.expanduser().absolute()
    args.processes = _processes(args)
    return args


def _processes(args: Namespace) -> int:
    """Processes of a training."""
    if args.launcher:
        if 'PARTITION' not in os.environ or shutil.which('srun') is None:
            raise UsageError('--launcher slurm needs srun, and PARTITION in the environment')
        return int(os.environ.get('GPUS', '4'))  # as the script has it
    here = torch.cuda.device_count()
    if args.gpus is not None and not 1 <= args.gpus <= here:
        raise UsageError(
            f'--gpus {args.gpus}: torch sees {here} on this machine; '
            + (f'take 1 to {here}' if here else 'leave it out')
        )
    return args.gpus or 1


def estimate(table: str, runs: Sequence[Run], args: Namespace) -> dict[str, Cost]:
    """What a training of each row takes, by name; printed with what cannot run."""
    costs: dict[str, Cost] = {}
    grid = Table('', title=f'{table}: what is left, estimated')
    for head in ('trainings', 'hours here', 'GPU-hours', 'GB'):
        grid.add_column(head, justify='right')
    for name in dict.fromkeys(run.row.name for run in runs):
        mine = [run for run in runs if run.row.name == name]
        left = sum(training.finished(run) is None for run in mine)
        cells = ['–'] * 3
        if mine[0].cfg is not None:
            found = costs[name] = cost(
                mine[0].cfg, mine[0].images, timed=left > 0 and not args.test_only
            )
            if found.hours is not None:
                share = mine[0].cfg.train_dataloader.batch_size
                cells = [f'{left * found.hours / args.processes:.1f}', '', '']
                cells[2] = f'{found.fixed + share * found.kept:.1f}'
            cells[1] = f'{left * found.gpu_hours:.1f}'
            if found.note:
                print(f'{name}: {found.note}')
        grid.add_row(name, str(left), *cells)
    Console(highlight=False, width=110).print('', grid)
    for problem in dict.fromkeys(run.problem for run in runs if run.problem):
        names = dict.fromkeys(run.row.name for run in runs if run.problem == problem)
        print(f'not runnable here: {", ".join(names)}: {problem}')
    return costs


def hours(runs: Sequence[Run], costs: Mapping[str, Cost], args: Namespace) -> float:
    """Of what can run and is not done, as far as they are known."""
    left = [run for run in runs if not run.problem and training.finished(run) is None]
    return sum(costs[run.row.name].hours or 0.0 for run in left) / args.processes


def reproduce(
    table: str, runs: Sequence[Run], costs: Mapping[str, Cost], args: Namespace
) -> list[str]:
    """Train and test what can be; results are written after each. What failed."""
    out, failed, trained = args.out / table, [], []
    reasons = {run.row.name: run.problem for run in runs if run.problem}
    done: dict[str, Any] = {}
    about = dict(
        table=table, command=f'python tools/reproduce.py {table}', machine=report.machine()
    )
    ready = [run for run in runs if not run.problem]
    if args.test_only:
        left = [run for run in ready if training.finished(run) is None]
        reasons |= {run.row.name: f'seed {run.seed} is not trained yet' for run in left}
        ready = [run for run in ready if run not in left]
    for number, run in enumerate(ready):
        name, time = run.row.name, hours(ready[number:], costs, args)
        print(
            f'\n{table}, {number + 1} of {len(ready)}: {name}, seed {run.seed}; about {time:.1f} '
            'hours for this and the rest',
            flush=True,
        )
        if training.finished(run) is None:
            training.train(run, args)
        checkpoint = training.finished(run)
        if checkpoint is None or not training.test(run, checkpoint, args):
            failed.append(f'{name}, seed {run.seed}')
            reasons[name] = f'the {"test" if checkpoint else "training"} failed'
            continue
        row = dict(name=name, config=str(run.row.config.relative_to(ROOT)))
        row |= dict(parameters=costs[name].parameters, runs=[])
        done.setdefault(name, row)['runs'].append(training.result(run, args))
        # What other commands measured, of rows that this one leaves out, stays.
        others = report.read(out).get('rows', [])
        all_rows = [other for other in others if other['name'] not in args.rows] + [*done.values()]
        all_rows.sort(key=lambda row: row['config'])
        report.write(dict(about, rows=all_rows), reasons, out)
        trained.append(str((run.folder / 'train').relative_to(out)))
    if trained:
        training.draw(trained, out)
        print(f'\n{(out / "results.md").read_text(encoding="utf-8")}\nresults: {out}')
    else:
        print(f'\n{table}: no results yet')
    return failed


def main(argv: Sequence[str] | None = None) -> None:
    """Check and estimate all tables, then run them; or copy results.

    Raises:
        UserError: If nothing can be run, or a training or test failed.
    """
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    if args.copy:
        for table in args.tables:
            copy(table, args.out / table)
        return
    interruptible.hold()
    plans = {table: plan(table, args) for table in args.tables}
    costs = {table: estimate(table, runs, args) for table, runs in plans.items() if runs}
    time = sum(hours(plans[table], costs[table], args) for table in costs)
    print(
        f'\n{time:.1f} hours are estimated for what can run here. "hours here": a training step on '
        'synthetic images, timed on this device, times the steps, without data and validation. '
        f'"GPU-hours": counted operations, at {USED:.0%} of the {PEAK / 1e12:g} TFLOP/s of an A100 '
        'in float32, which is assumed. "GB": weights, gradients, moments of AdamW and what the '
        'forward pass keeps, a process.',
        flush=True,
    )
    if args.dry_run:
        return
    if all(run.problem for runs in plans.values() for run in runs):
        raise UserError('nothing can be run here: the lines above say why')
    make_writable(args.out, '--out')
    failed = [name for t in costs for name in reproduce(t, plans[t], costs[t], args)]
    if failed:
        raise UserError(f'failed: {", ".join(failed)}; the lines above say why')


def copy(table: str, out: Path) -> None:
    """Show the results of a table in the folders of its configs.

    Raises:
        UserError: If there are none.
    """
    if not (out / 'results.json').is_file():
        raise UserError(f'{out} has no results: run `python tools/reproduce.py {table}` first')
    for folder in report.copy(report.read(out)):
        print(f'{folder}: results.json, README.md, metafile.yml')


if __name__ == '__main__':
    sys.exit(run_tool(main))
