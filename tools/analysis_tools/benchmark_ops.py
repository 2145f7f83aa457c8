"""Measure the scan ops against the token loop, the chunked scan and mamba-ssm's composition.

Needs torch and mmvim_ops alone. Writes ops.md, ops.json and ops.png (with matplotlib) to --out.
Times are medians of interleaved samples: one of each contender in turn.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from itertools import product, starmap
from statistics import median
from typing import Any

import torch
from benchmarking import harness, report, scan_cases
from benchmarking.ceilings import copy_bandwidth, exp_loop
from benchmarking.measuring import contained, saved_bytes
from benchmarking.report import Row, mebibytes, significant
from benchmarking.scan_cases import PARTS, PASSES, PUBLISHED, SIZES, SPLITS, Case, Work

from mmvim_ops import BACKENDS

_READING = """\
`÷ {ours}` is a contender's time over that of `{ours}`, from the medians of interleaved samples:
above 1 `{ours}` is faster. `÷ forward` is the time over that of the same contender's forward pass,
`spread` the distance between the quartiles over the median. `G exp/s` counts B·L·E·N per direction,
twice for forward + backward (no implementation saves the decays); `of exp` is the share of a loop
of nothing but exponentials in the same rounds, `of copy` the share of a large copy's rate that the
bytes take which cannot be avoided (inputs read once, results written once). `peak` is what torch
held above the inputs, `saved` what autograd keeps for the backward pass, parameters apart. `rms` is
the relative distance of the output to that of `{ours}`."""


def parse_arguments(argv: Sequence[str]) -> Namespace:
    """The command line."""
    parser = harness.measuring_parser(__doc__, SIZES)
    add = parser.add_argument
    add(
        '--contenders',
        nargs='+',
        choices=[*BACKENDS, PUBLISHED],
        default=['auto', 'chunked', 'reference'],
        help='backends of mmvim_ops, or "published": the kernels of mamba-ssm and causal-conv1d, '
        'in `inner`; the first is what the others are compared with (default: %(default)s)',
    )
    add('--parts', nargs='+', choices=PARTS, default=list(PARTS))
    add('--lengths', nargs='+', type=harness.positive, default=[197, 1024, 4096], metavar='L')
    add(
        '--splits',
        nargs='+',
        choices=[name.removeprefix('cuda S') for name in SPLITS],
        default=[],
        help='our CUDA kernels once more, with so many threads a channel each; "8-general" without '
        'those for blocks of a Vim alone',
    )
    args = harness.parse(parser, argv)
    args.contenders += [f'cuda S{split}' for split in args.splits]
    return args


def measure(case: Case, args: Namespace) -> list[Row]:
    """One row per execution, pass and contender of a case."""
    names = [name for name in args.contenders if (case.part, name) != ('scan', PUBLISHED)]
    if not names:
        return []
    works = {name: scan_cases.make_work(name, case, args.device) for name in names}
    differences = compare(works)
    copy = copy_bandwidth(args.device, args.threads)
    loop, count = exp_loop(args.device)
    rows: list[Row] = []
    for execution in args.execution:
        forward: dict[str, Row] = {}
        for kind in PASSES:
            makers = {name: partial(partial, work.call, kind) for name, work in works.items()}
            # The loop of exponentials is timed in the same rounds as what is compared with it.
            found = harness.contest(makers, execution, args, {}, {'exp': loop})
            forward = forward or found
            loop_rate = count / found['exp'].get('seconds', float('inf'))
            for name, work in works.items():
                about = dict(case._asdict(), execution=execution, kind=kind, contender=name)
                row = {**about, **found[name], 'difference': differences.get(name)}
                rows.append(row)
                if row['status'] != 'ok':
                    continue
                # exp(dt A), B L E N a direction; a backward pass needs every one once more.
                decays = (2 if kind == 'forward' else 4) * case.channels * scan_cases.STATES
                rate = case.batch * case.length * decays / row['seconds']
                row.update(
                    gigaexp_per_second=rate / 1e9,
                    gigaexp_per_second_of_loop=loop_rate / 1e9,
                    exp_share=rate / loop_rate if loop_rate else None,
                    gigabytes_per_second_of_copy=copy / 1e9,
                    copy_share=work.least_bytes(kind) / row['seconds'] / copy,
                )
                if kind != 'forward':
                    row['over_forward'] = row['seconds'] / forward[name]['seconds']
                    if 'peak_bytes' in row:
                        row['saved_bytes'] = saved_bytes(work.forward, work.parameters)
    return rows


def compare(works: dict[str, Work]) -> dict[str, float]:
    """Root mean square distance of every output to the first one, over the size of that one.

    That all compute the same is part of a comparison of times.
    """
    outputs: dict[str, torch.Tensor] = {}
    for name, work in works.items():
        with contained({}, name), torch.no_grad():
            outputs[name] = work.forward().double()
    first = outputs.get(next(iter(works)))
    if first is None:
        return {}
    return {name: float((out - first).norm() / first.norm()) for name, out in outputs.items()}


def write(result: dict[str, Any], args: Namespace) -> None:
    """The report. A CPU's absolute times stay out of the tables: they are the machine's mood."""
    ours, on_gpu = args.contenders[0], args.device.type == 'cuda'
    microseconds = {'µs': ('seconds', lambda seconds: significant(1e6 * seconds))}
    columns = {
        'L': ('length', str),
        'pass': ('kind', str),
        'contender': ('contender', str),
        f'÷ {ours}': ('seconds_over_first', significant),
        '÷ forward': ('over_forward', significant),
        'spread': ('spread', '{:.0%}'.format),
        **(microseconds if on_gpu else {}),
        'G exp/s': ('gigaexp_per_second', significant),
        'of exp': ('exp_share', '{:.0%}'.format),
        'of copy': ('copy_share', '{:.0%}'.format),
        'peak MiB': ('peak_bytes', mebibytes),
        'saved MiB': ('saved_bytes', mebibytes),
        'rms': ('difference', '{:.0e}'.format),
    }
    texts = ['# Scan ops', _READING.format(ours=ours)]
    measured = [row for row in result['rows'] if row['status'] == 'ok']
    if measured:
        rate = median(row['gigaexp_per_second_of_loop'] for row in measured)
        copy = measured[0]['gigabytes_per_second_of_copy']
        found = dict(copy=f'{significant(copy)} GB/s', exponentials=f'{significant(rate)} G/s')
        texts.insert(1, report.facts('Ceilings', found))
    report.write(
        args.out,
        'ops',
        result,
        texts,
        group=('part', 'size', 'batch', 'dtype', 'execution'),
        columns=columns,
        x='length',
        panels={f'time ÷ {ours}': 'seconds_over_first', 'share of the exponentials': 'exp_share'},
        line='{contender}, {kind}',
        stars={},
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all cases."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parse_arguments(argv)
    values = product(args.parts, args.sizes, args.batch, args.dtypes, args.lengths)
    return harness.run('benchmark_ops', argv, args, starmap(Case, values), measure, write)


if __name__ == '__main__':
    sys.exit(main())
