"""The options that both benchmarks have."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarking.timing import Effort


def measuring_parser(
    description: str | None, sizes: Sequence[str], dtypes: Sequence[str], executions: Sequence[str]
) -> ArgumentParser:
    """Options of both benchmarks; the first execution is the default."""
    parser = ArgumentParser(description=description, allow_abbrev=False)
    add = parser.add_argument
    add('--out', type=Path, required=True, metavar='DIR', help='folder for the report')
    add('--sizes', nargs='+', choices=sizes, default=['tiny'])
    add('--batch', nargs='+', type=int, default=[1], metavar='B')
    add('--dtypes', nargs='+', choices=dtypes, default=['float32'])
    add('--device', default='cpu', help='cpu (default), cuda, cuda:1')
    add('--threads', nargs='+', type=int, default=[torch.get_num_threads()])
    add(
        '--execution',
        nargs='+',
        choices=executions,
        default=[executions[0]],
        help='as it is (default), or each pass replayed as a CUDA graph: small cases without the '
        'time of their launches; with "compiled" torch.compile',
    )
    add('--rounds', type=int, default=5, help='at least (default: %(default)s)')
    add('--seconds', type=float, default=2.0, help='a case, at least (default: %(default)s)')
    add('--no-memory', action='store_true', help='time alone')
    return parser


def check_measuring(parser: ArgumentParser, args: Namespace) -> None:
    """End with a message where an option of :func:`measuring_parser` cannot be served.

    ``args.device`` becomes a device, ``args.effort`` is added, and the folder is made.
    """
    for name in ('batch', 'threads', 'lengths'):
        if min(getattr(args, name, [1])) < 1:
            parser.error(f'--{name} takes numbers from 1 on, got {min(getattr(args, name))}')
    try:
        args.effort = Effort(args.rounds, args.seconds)
        args.device = checked_device(args.device)
        args.out.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if args.device.type == 'cpu' and any('graphs' in name for name in args.execution):
        parser.error('--execution graphs needs --device cuda: a CPU has no CUDA graphs')


def checked_device(name: str) -> torch.device:
    """The device of that name; if it is a GPU with a number, events are recorded there.

    Raises:
        ValueError: The device is neither 'cpu' nor 'cuda', or not usable here; says why.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(str(error).splitlines()[0]) from None
    if device.type not in ('cpu', 'cuda'):
        raise ValueError(f'--device {name}: only cpu and cuda are measured')
    if device.index is not None and device.type == 'cuda':
        torch.cuda.set_device(device)
    return device
