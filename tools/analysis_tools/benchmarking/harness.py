"""The options that both benchmarks have, their course, and the circumstances of a run."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarking.measuring import Call, capture, contained, interleave, peak_bytes, release
from benchmarking.report import Row
from mmvim_ops import loading

ROOT = Path(__file__).parents[3]


def positive(text: str) -> int:
    """A number from 1 on, for argparse."""
    if int(text) < 1:
        raise ArgumentTypeError(f'takes numbers from 1 on, got {text}')
    return int(text)


def measuring_parser(description: str | None, sizes: Iterable[str]) -> ArgumentParser:
    """The options of both benchmarks."""
    parser = ArgumentParser(description=description, allow_abbrev=False)
    add = parser.add_argument
    add('--out', type=Path, required=True, metavar='DIR', help='folder for the report')
    add('--sizes', nargs='+', choices=list(sizes), default=['tiny'])
    add('--batch', nargs='+', type=positive, default=[1], metavar='B')
    dtypes = ('float32', 'bfloat16', 'float16')
    add('--dtypes', nargs='+', choices=dtypes, default=['float32'])
    add('--device', choices=('cpu', 'cuda'), default='cpu')
    add('--threads', type=positive, default=torch.get_num_threads())
    executions = ('eager', 'graphs')
    told = 'graphs: each pass replayed as a CUDA graph, without the time of its launches'
    add('--execution', nargs='+', choices=executions, default=['eager'], help=told)
    add('--rounds', type=positive, default=5, help='at least (default: %(default)s)')
    add('--seconds', type=float, default=2.0, help='a case, at least (default: %(default)s)')
    add('--no-memory', action='store_true', help='time alone')
    return parser


def parse(parser: ArgumentParser, argv: Sequence[str]) -> Namespace:
    """The arguments, checked against each other and the machine; the folder is made."""
    args = parser.parse_args(argv)
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('--device cuda: torch sees no CUDA device; leave the option out for the CPU')
    if args.device == 'cpu' and 'graphs' in args.execution:
        parser.error('--execution graphs needs --device cuda: a CPU has no CUDA graphs')
    args.device = torch.device(args.device)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(str(error))
    return args


def contest(
    contenders: Mapping[str, Callable[[], Call]],
    execution: str,
    args: Namespace,
    held: Mapping[str, int],
    beside: Mapping[str, Call],
) -> dict[str, Row]:
    """Measure contenders: peak memory of each alone, then times in the same rounds.

    Args:
        contenders (Mapping[str, Callable[[], Call]]): Name to a function that makes the call. The
            first is what the others are compared with.
        execution (str): 'eager' or 'graphs'; a replayed graph allocates nothing.
        args (Namespace): Of :func:`parse`.
        held (Mapping[str, int]): Bytes that count to a contender's peak, known once it is made.
        beside (Mapping[str, Call]): What else takes part in the rounds.

    Returns:
        dict[str, Row]: What :func:`interleave` returns; with ``peak_bytes``, and with time and
        memory over the first contender's.
    """
    rows: dict[str, Row] = {name: {} for name in (*contenders, *beside)}
    failed: dict[str, Row] = {}
    calls: dict[str, Call] = {}
    for name, make in contenders.items():
        with contained(failed, name):
            call = make()
            if execution == 'eager' and not args.no_memory:
                call()  # what happens once is over
                peak = held.get(name, 0) + peak_bytes(call, args.device)
                rows[name]['peak_bytes'] = peak
            calls[name] = capture(call) if execution == 'graphs' else call
    for name, found in (interleave({**calls, **beside}, args) | failed).items():
        rows[name].update(found)
    first = next(iter(rows.values()))
    for row in rows.values():
        for key in ('seconds', 'peak_bytes'):
            if key in row and key in first:
                row[f'{key}_over_first'] = row[key] / first[key]
    return rows


# What a report's command begins with where it is set: each changes what is measured.
_VARIABLES = (
    'OMP_NUM_THREADS',
    'MMVIM_CPU_ISA',
    'MKL_ENABLE_INSTRUCTIONS',
    'ONEDNN_MAX_CPU_ISA',
    'ATEN_CPU_CAPABILITY',
    'CUDA_VISIBLE_DEVICES',
)


def run(
    tool: str,
    argv: Sequence[str],
    args: Namespace,
    cases: Iterable[Any],
    measure: Callable[[Any, Namespace], list[Row]],
    write: Callable[[dict[str, Any], Namespace], None],
) -> int:
    """Measure every case; the report is written anew after each of them."""
    variables = [f'{n}={shlex.quote(os.environ[n])}' for n in _VARIABLES if n in os.environ]
    result: dict[str, Any] = dict(
        command=' '.join([*variables, f'python tools/analysis_tools/{tool}.py', shlex.join(argv)]),
        **circumstances(args),
        rows=[],
    )
    torch.set_num_threads(args.threads)
    steps = list(cases)
    for number, case in enumerate(steps, start=1):
        told = ' '.join(str(value) for value in case)
        print(f'[{number}/{len(steps)}] {told}', file=sys.stderr, flush=True)
        result['rows'] += measure(case, args)
        release()
        write(result, args)
    print(f'report: {args.out}')
    return 0


def circumstances(args: Namespace) -> dict[str, dict[str, str]]:
    """Properties of the machine, and versions of what may have a part in the figures."""
    machine = {'cpu': platform.processor() or platform.machine()}
    with suppress(OSError, TypeError, AttributeError):  # Linux alone, and not every processor
        text = Path('/proc/cpuinfo').read_text()
        machine['cpu'] = re.search(r'^model name\s*:\s*(.+)$', text, re.M)[1]
        machine['cores'] = f'{len(os.sched_getaffinity(0))} of {os.cpu_count()}'
        machine['load before the run'] = f'{os.getloadavg()[0]:.2f}'
    machine['threads'] = str(args.threads)
    machine['cpu features of torch'] = torch.backends.cpu.get_cpu_capability()
    if args.device.type == 'cuda':
        gpu = torch.cuda.get_device_properties(args.device)
        machine['gpu'] = f'{gpu.name}, {gpu.multi_processor_count} multiprocessors'
    machine['system'] = platform.platform(terse=True)
    versions = {'python': platform.python_version(), 'torch': str(torch.__version__)}
    versions['float32 products'] = torch.get_float32_matmul_precision()
    versions['native library'] = loading.problem() or loading.isa()
    libraries = ('mmengine', 'mmcv', 'mmsegmentation', 'mmpretrain', 'timm')
    for package in ('mmvim', 'mamba-ssm', 'causal-conv1d', 'triton', *libraries):
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    with suppress(OSError, subprocess.SubprocessError):  # outside a repository
        git = ['git', '-C', str(ROOT), 'describe', '--always', '--dirty', '--abbrev=10']
        result = subprocess.run(git, capture_output=True, text=True, timeout=20, check=True)
        versions['revision'] = result.stdout.strip()
    return {'machine': machine, 'versions': versions}
