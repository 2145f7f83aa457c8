"""Measure the scan ops against the token loop, the chunked scan and mamba-ssm's composition.

Needs torch and mmvim_ops alone. Writes ops.md, ops.json and ops.png (with matplotlib) to --out.
Times are medians of interleaved samples: one of each contender in turn.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from itertools import product
from typing import Any
from unittest import mock

import torch
from benchmarking import machine, ops_report, report
from benchmarking.arguments import check_measuring, measuring_parser
from benchmarking.ceilings import clock_under_load, copy_bandwidth, exp_loops, mufu_rate
from benchmarking.memory import FAITHFUL_MALLOC, peak_bytes, resident_peak_bytes, saved_bytes
from benchmarking.report import Row
from benchmarking.scan_cases import (
    DTYPES,
    PARTS,
    PUBLISHED,
    SIZES,
    SPLIT_CONTENDERS,
    SPLITS,
    STATES,
    Case,
    Work,
    contender_problem,
    make_work,
)
from benchmarking.timing import OOM, Call, Timing, capture, interleave, is_out_of_memory, release

PASSES = ('forward', 'forward + backward')
_DEFAULT_CONTENDERS = ['auto', 'chunked', 'reference', PUBLISHED]
_CHILD_WARM_UP_TOKENS, _CHILD_SECONDS = 32, 600


def parse_arguments(argv: Sequence[str]) -> Namespace:
    """The command line."""
    parser = measuring_parser(__doc__, list(SIZES), list(DTYPES), ('eager', 'graphs'))
    parser.add_argument(
        '--contenders',
        nargs='+',
        metavar='NAME',
        help='backends of mmvim_ops, or "published" (mamba-ssm and causal-conv1d); the first is '
        f'what the others are compared with (default: {" ".join(_DEFAULT_CONTENDERS)}, as far as '
        'they run here)',
    )
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=list(PARTS))
    parser.add_argument(
        '--lengths', nargs='+', type=int, default=[197, 1024, 4096], metavar='L', help='tokens'
    )
    parser.add_argument(
        '--splits',
        nargs='+',
        type=int,
        choices=SPLITS,
        default=[],
        help='our CUDA kernels once more with so many threads a channel each',
    )
    parser.add_argument(
        '--reference-up-to',
        type=int,
        default=4096,
        metavar='L',
        help='the token loop is left out of longer sequences (default: %(default)s)',
    )
    args = parser.parse_args(argv)
    check_measuring(parser, args)
    if args.device.type == 'cpu' and args.splits:
        parser.error('--splits needs --device cuda: it chooses among the CUDA kernels')
    splits = [name for name, split in SPLIT_CONTENDERS.items() if split in args.splits]
    asked = [*(args.contenders or ()), *splits]
    args.contenders = [*(args.contenders or _DEFAULT_CONTENDERS), *splits]
    args.left_out = {}
    for name in list(args.contenders):
        problems = [contender_problem(name, part, args.device) for part in args.parts]
        if all(problems):
            if name in asked:
                parser.error(f'{name} cannot run here: {problems[-1]}')
            args.contenders.remove(name)
            args.left_out[name] = problems[-1]
    return args


def all_cases(args: Namespace) -> Iterator[tuple[int, Case]]:
    """Threads and case of every step; threads change last."""
    for threads in args.threads:
        for values in product(args.parts, args.sizes, args.batch, args.dtypes, args.lengths):
            part, size, batch, dtype, length = values
            yield threads, Case(part, size, batch, length, dtype)


def measure(case: Case, ceilings: Row, args: Namespace) -> list[Row]:
    """One row per execution, pass and contender of a case."""
    names = [
        name
        for name in args.contenders
        if contender_problem(name, case.part, args.device) is None
        and (name != 'reference' or case.length <= args.reference_up_to)
    ]
    if not names:
        return []
    works = {name: make_work(name, case, args.device) for name in names}
    refused = without_kernel(works)
    differences = compare(_outputs(works), baseline(names))
    loops = exp_loops(args.device)
    # The loops of exponentials are timed in the same rounds as what is compared with them.
    beside = {loop.name: loop.call for loop in loops}
    rows = []
    for execution, kind in product(args.execution, PASSES):
        calls, failed = ready_calls(works, execution, kind, args.device)
        timings = interleave({**calls, **beside}, args.device, args.effort) | failed | refused
        rates = {
            loop.name: loop.count / timing.median / 1e9
            for loop in loops
            if isinstance(timing := timings[loop.name], Timing)
        }
        for name in names:
            timing = timings[name]
            row: Row = dict(asdict(case), threads=ceilings['threads'], execution=execution)
            row.update(contender=name, kind=kind)
            row.update(inner_channels=case.channels, states=STATES, dt_rank=case.rank)
            row['status'] = 'ok' if isinstance(timing, Timing) else timing
            if isinstance(timing, Timing):
                moved = works[name].least_bytes(case.output_bytes)[kind]
                row.update(figures(timing, timings.get(args.contenders[0]), case, kind, moved))
                row.update(gigaexp_per_second_of_loops=rates, difference=differences.get(name))
            rows.append(row)
        del calls  # with the memory of their graphs
    add_shares([row for row in rows if row['status'] == 'ok'], ceilings)
    if not args.no_memory:
        add_memory(rows, works, case, args.device)
    return rows


def without_kernel(works: dict[str, Work]) -> dict[str, str]:
    """Takes what cannot run with its number of threads a channel out of ``works``; says why."""
    refused = {}
    for name in [name for name, work in works.items() if work.split]:
        try:
            works[name].forward_backward()
        except RuntimeError as error:
            if is_out_of_memory(error):
                continue  # told of the pass that it happens in
            refused[name] = str(error).splitlines()[0]
            del works[name]
    return refused


def ready_calls(
    works: dict[str, Work], execution: str, kind: str, device: torch.device
) -> tuple[dict[str, Call], dict[str, str]]:
    """The call of each contender to time, and the contenders that do not fit into memory."""
    calls: dict[str, Call] = {}
    failed = {}
    for name, work in works.items():
        call = work.forward if kind == 'forward' else work.forward_backward
        try:
            calls[name] = capture(call) if execution == 'graphs' else call
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failed[name] = OOM
            release(device)
    return calls, failed


def _outputs(works: dict[str, Work]) -> dict[str, torch.Tensor]:
    """The forward pass of every contender; one that runs out of memory is left out."""
    outputs = {}
    for name, work in works.items():
        try:
            outputs[name] = work.forward()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
    return outputs


def figures(
    timing: Timing, ours: Timing | str | None, case: Case, kind: str, moved: int
) -> dict[str, float | None]:
    """Figures that follow from the median of a contender's samples.

    ``ours`` are those of what it is compared with; ``moved`` the bytes that cannot be avoided.
    """
    # A backward pass needs every decay once more: none of them is saved.
    passes = 1 if kind == 'forward' else 2
    return dict(
        median_seconds=timing.median,
        spread=timing.spread,
        rounds=len(timing.samples),
        loops=timing.loops,
        over_ours=timing.median / ours.median if isinstance(ours, Timing) else None,
        gigaexp_per_second=passes * case.exponentials / timing.median / 1e9,
        gigaspecial_per_second=passes * case.special_functions / timing.median / 1e9,
        gigabytes_per_second=moved / timing.median / 1e9,
    )


def add_shares(rows: list[Row], ceilings: Row) -> None:
    """Set every row's rates in relation to the ceilings, and each pass to its forward pass."""
    forward = {
        (row['execution'], row['contender']): row['median_seconds']
        for row in rows
        if row['kind'] == 'forward'
    }
    for row in rows:
        if 'mufu_giga_per_second' in ceilings:
            row['exp_share'] = row['gigaspecial_per_second'] / ceilings['mufu_giga_per_second']
        else:
            loop = next(iter(row['gigaexp_per_second_of_loops'].values()))
            row['exp_share'] = row['gigaexp_per_second'] / loop
        row['copy_share'] = row['gigabytes_per_second'] / ceilings['copy_gigabytes_per_second']
        first = forward.get((row['execution'], row['contender']))
        row['over_forward'] = row['median_seconds'] / first if first else None


def baseline(names: Sequence[str]) -> str:
    """Whose output the others' are compared with: the specification, or the last one named."""
    return 'reference' if 'reference' in names else names[-1]


def compare(outputs: dict[str, torch.Tensor], against: str) -> dict[str, float]:
    """Root mean square distance of every output to one of them, over the size of that one.

    That all compute the same is part of a comparison of times.
    """
    if against not in outputs:
        return {}
    exact = outputs[against].double()
    scale = exact.square().mean().sqrt()
    return {
        name: float((out.double() - exact).square().mean().sqrt() / scale)
        for name, out in outputs.items()
    }


def add_memory(rows: list[Row], works: dict[str, Work], case: Case, device: torch.device) -> None:
    """Fill peak, saved and resident bytes in; a replayed graph allocates nothing."""
    for name, work in works.items():
        mine = [
            row
            for row in rows
            if (row['contender'], row['status'], row['execution']) == (name, 'ok', 'eager')
        ]
        if not mine:
            continue
        saved = saved_bytes(work.forward_with_graph, work.parameters)
        resident = resident_peaks(name, case, mine[0]['threads']) if device.type == 'cpu' else {}
        for row in mine:
            call = work.forward if row['kind'] == 'forward' else work.forward_backward
            row['peak_bytes'] = peak_bytes(call, device)
            row['resident_bytes'] = resident.get(row['kind'])
            row['saved_bytes'] = saved if row['kind'] != 'forward' else None


def resident_peaks(name: str, case: Case, threads: int) -> dict[str, int | None]:
    """Resident memory of the passes in a fresh process, where nothing else was allocated.

    Empty, with a line on stderr, if that process fails.
    """
    spawn = multiprocessing.get_context('spawn')
    try:
        with mock.patch.dict(os.environ, FAITHFUL_MALLOC), ProcessPoolExecutor(1, spawn) as pool:
            return pool.submit(_resident_peaks_here, name, case, threads).result(_CHILD_SECONDS)
    except Exception as error:  # out of memory, killed, or far too slow
        print(f'no resident memory of {name}: {error!r}', file=sys.stderr)
        return {}


def _resident_peaks_here(name: str, case: Case, threads: int) -> dict[str, int | None]:
    torch.set_num_threads(threads)
    device = torch.device('cpu')
    # Code, thread pools and caches come into memory with a first, short call.
    short = replace(case, batch=1, length=min(case.length, _CHILD_WARM_UP_TOKENS))
    make_work(name, short, device).forward_backward()
    work = make_work(name, case, device)
    calls = dict(zip(PASSES, (work.forward, work.forward_backward)))
    return {kind: resident_peak_bytes(call) for kind, call in calls.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all cases; the report is written anew after each of them."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parse_arguments(argv)
    result: dict[str, Any] = dict(
        tool='benchmark_ops',
        command=machine.command_line(__file__, argv),
        device=args.device.type,
        machine=machine.describe_machine(args.device),
        versions=machine.describe_versions(),
        ours=args.contenders[0],
        baseline=baseline(args.contenders),
        left_out={**machine.backend_notes(), **args.left_out},
        ceilings=[],
        rows=[],
    )
    steps = list(all_cases(args))
    for number, (threads, case) in enumerate(steps, start=1):
        what = f'{case.part} {case.size} B {case.batch} L {case.length} {case.dtype}'
        print(f'[{number}/{len(steps)}] {what}', file=sys.stderr, flush=True)
        if not result['ceilings'] or threads != result['ceilings'][-1]['threads']:
            torch.set_num_threads(threads)
            result['ceilings'].append(_ceilings(threads, args))
        result['rows'] += measure(case, result['ceilings'][-1], args)
        release(args.device)
        report.write(args.out, 'ops', result, ops_report.to_markdown(result))
    ops_report.plot(args.out, result)
    print(f'report: {args.out / "ops.md"}')
    return 0


def _ceilings(threads: int, args: Namespace) -> Row:
    """Ceilings of the device, with so many threads."""
    bandwidth = copy_bandwidth(args.device, args.effort)
    ceilings: Row = dict(threads=threads, copy_gigabytes_per_second=bandwidth / 1e9)
    clock = clock_under_load(args.device) if args.device.type == 'cuda' else None
    if clock is not None:
        count = torch.cuda.get_device_properties(args.device).multi_processor_count
        rate = mufu_rate(count, clock)
        ceilings.update(sm_megahertz=clock, mufu_giga_per_second=rate / 1e9)
    return ceilings


if __name__ == '__main__':
    sys.exit(main())
