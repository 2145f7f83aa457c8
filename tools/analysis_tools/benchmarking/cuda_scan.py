"""Compile single instances of the CUDA scan without torch; check, sanitize and time them.

An instance compiles in a minute, as many at once as there are cores, and its check is small enough
for compute-sanitizer, which takes hours for a test suite. Needs nvcc and a GPU; with --host the
check runs the kernels' phases on the CPU and needs g++ alone.

``--headers`` names a changed copy of ops/csrc/cuda: a variant is measured before it is written.
"""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[3]
SOURCE = Path(__file__).with_suffix('.cu')
HEADERS = ROOT / 'ops' / 'csrc' / 'cuda'
EMULATION = ROOT / 'tests' / 'ops' / 'emulation'
TYPES = {'float32': 'float', 'bfloat16': 'BFloat16', 'float16': 'Half'}
STEPS = ('check', 'powers', 'sanitize', 'time')
SANITIZERS = ('memcheck', 'racecheck', 'synccheck')


class Instance(NamedTuple):
    """A compiled kernel of either pass.

    Attributes:
        dtype (str): Of activations.
        split (int): Threads a channel and direction.
        kind (str): 'vim' for the kernel that serves blocks of a Vim alone, 'any' for the general
            one with 16 states, or a number of states.
    """

    dtype: str
    split: int
    kind: str

    @classmethod
    def parse(cls, text: str) -> Instance:
        """From 'bfloat16:8:vim'."""
        dtype, _, rest = text.partition(':')
        split, _, kind = rest.partition(':')
        states = kind.isdigit() and 0 < int(kind) <= 32
        if dtype not in TYPES or not split.isdigit() or not (kind in ('vim', 'any') or states):
            raise ValueError(
                f'{text!r} is no instance; valid: DTYPE:SPLIT:KIND with a dtype of '
                f'{", ".join(TYPES)}, 1 to 16 threads a channel, and vim, any or a number of states'
            )
        return cls(dtype, int(split), kind)

    def __str__(self) -> str:
        return ':'.join(map(str, self))

    def defines(self) -> list[str]:
        """For the compiler."""
        vim = self.kind == 'vim'
        values = {
            'TYPE': TYPES[self.dtype],
            'SPLIT': self.split,
            'STATES': self.kind if self.kind.isdigit() else 16,
            'TILE': 64 if vim else 32,
            'VIM': int(vim),
            'BACKWARD': int(self.split >= (8 if vim else 4)),
        }
        return [f'-DSCAN_{name}={value}' for name, value in values.items()]


USUAL = [
    *(Instance('bfloat16', split, 'any') for split in (1, 2, 4, 8, 16)),
    *(Instance('bfloat16', split, 'vim') for split in (4, 8, 16)),
    *(Instance('float32', split, 'vim') for split in (8, 16)),
    Instance('float32', 8, 'any'),
    Instance('float16', 8, 'vim'),
    Instance('bfloat16', 8, '5'),
]


def command(instance: Instance, program: Path, headers: Path, arch: str | None) -> list[str]:
    """What compiles an instance, for the host where no architecture is given."""
    common = ['-std=c++17', f'-I{headers}', *instance.defines(), str(SOURCE), '-o', str(program)]
    if arch is None:
        cxx = os.environ.get('CXX', 'g++')
        warnings = ['-Wno-unknown-pragmas', '-Wno-attributes']
        host = ['-x', 'c++', '-DMMVIM_EMULATE', f'-I{EMULATION}']
        return [cxx, '-O2', *warnings, *host, *common]
    return ['nvcc', '-O3', f'-arch={arch}', '-lineinfo', *common]


def run_step(step: str, program: Path, size: Sequence[str]) -> bool:
    """Run a step and show what it says; whether all was right."""
    if step == 'sanitize':
        environ = os.environ | {'MMVIM_NO_ZONES': '1'}
        return all(
            [
                _shown(
                    [
                        'compute-sanitizer',
                        '--tool',
                        tool,
                        '--error-exitcode',
                        '9',
                        program,
                        'check',
                    ],
                    environ,
                    last_lines=1,
                )
                for tool in SANITIZERS
            ]
        )
    return _shown([program, step, *(size if step == 'time' else ())], dict(os.environ))


def _shown(words: Sequence[str | Path], environ: dict[str, str], last_lines: int = 0) -> bool:
    """Run a command; of a long report that found nothing the last lines are enough."""
    try:
        result = subprocess.run(
            words, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    except OSError as error:
        print(f'{words[0]} cannot be run: {error}')
        return False
    lines = result.stdout.splitlines()
    right = result.returncode == 0
    if result.returncode < 0:
        lines.append(f'ended by signal {-result.returncode}')
    print('\n'.join(lines[-last_lines:] if right and last_lines else lines), flush=True)
    return right


def main(argv: Sequence[str] | None = None) -> int:
    """Compile all instances, then run every step of each; 1 if anything was wrong."""
    parser = ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--out', type=Path, required=True, help='folder of the programs')
    parser.add_argument('--steps', nargs='+', choices=STEPS, default=['check'], help='in order')
    parser.add_argument('--instances', nargs='+', metavar='DTYPE:SPLIT:KIND', help='not the usual')
    parser.add_argument('--size', nargs=4, default=[], metavar=('B', 'L', 'E', 'R'), help='to time')
    parser.add_argument('--headers', type=Path, default=HEADERS, help='ops/csrc/cuda or a copy')
    parser.add_argument('--arch', default='sm_90', help='of nvcc; default: %(default)s')
    parser.add_argument('--host', action='store_true', help='emulate the phases on the CPU: check')
    args = parser.parse_args(argv)
    if args.host and args.steps != ['check']:
        parser.error(f'--host has nothing to {" or ".join(args.steps)}: its only step is check')
    try:
        instances = [*map(Instance.parse, args.instances)] if args.instances else USUAL
    except ValueError as error:
        parser.error(str(error))
    args.out.mkdir(parents=True, exist_ok=True)
    programs = {each: args.out.resolve() / str(each).replace(':', '_') for each in instances}

    def build(instance: Instance) -> str | None:
        words = command(
            instance, programs[instance], args.headers, None if args.host else args.arch
        )
        try:
            result = subprocess.run(words, stderr=subprocess.PIPE, text=True, check=False)
        except OSError as error:
            return f'{words[0]} cannot be run: {error}'
        return result.stderr if result.returncode != 0 else None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = dict(zip(instances, pool.map(build, instances)))
    faults = [f'{each}: not compiled' for each, problem in problems.items() if problem is not None]
    for instance, problem in problems.items():
        if problem is not None:
            print(f'## {instance}\n{problem}', flush=True)
            continue
        for step in args.steps:
            print(f'## {instance}: {step}', flush=True)
            if not run_step(step, programs[instance], args.size):
                faults.append(f'{instance}: {step}')
    print('\n'.join(['Wrong:', *faults]) if faults else f'All right: {len(instances)} instances.')
    return int(bool(faults))


if __name__ == '__main__':
    sys.exit(main())
