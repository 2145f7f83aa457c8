"""CPU kernels on 64-bit ARM: cross-compiled, run in an emulator, compared with this machine's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parents[1] / 'ops' / 'csrc' / 'cpu'
CROSS, EMULATOR, HOST = (
    shutil.which(name) for name in ('aarch64-linux-gnu-g++', 'qemu-aarch64', 'g++')
)
# As ops/build.py compiles them; a static program needs no ARM libraries beside the emulator.
FLAGS = ('-O3', '-std=c++17', '-fno-math-errno', '-Wall', '-Wextra', '-Werror', '-static')

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not KERNELS.is_dir(), reason='no sources beside the tests'),
    pytest.mark.skipif(
        not (CROSS and EMULATOR and HOST),
        reason='needs g++, aarch64-linux-gnu-g++ and qemu-aarch64: `make arm-tools`',
    ),
]


def compiled(compiler: str | None, units: tuple[str, ...], output: Path) -> str:
    """The program that runs kernels on made-up problems, with those of some units."""
    assert compiler is not None
    sources = [str(KERNELS / unit) for unit in units]
    words = [*FLAGS, f'-I{KERNELS}', *sources, str(HERE / 'arm' / 'run_kernels.cpp')]
    subprocess.run([compiler, *words, '-o', str(output)], check=True, timeout=1200)
    return str(output)


def results(*command: str) -> dict[str, torch.Tensor]:
    """What the program printed, by name."""
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    found = {}
    for line in done.stdout.splitlines():
        problem, _, rest = line.partition('/')
        words = rest.split()
        numbers = next(i for i, word in enumerate(words) if not word.isalpha())
        values = torch.tensor([float(word) for word in words[numbers:]])
        while (name := f'{problem}/{" ".join(words[:numbers])}') in found:
            problem += "'"  # the second direction's
        found[name] = values
    return found


@pytest.fixture(scope='module')
def here(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Results of this machine's plain kernels, which other tests hold against float64."""
    output = tmp_path_factory.mktemp('host') / 'run_kernels'
    return results(compiled(HOST, ('plain.cpp',), output), 'plain')


@pytest.fixture(scope='module')
def on_arm(tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp('arm') / 'run_kernels'
    return compiled(CROSS, ('plain.cpp', 'neon.cpp'), output)


@pytest.mark.parametrize('name', ['neon', 'plain'])
def test_equals_this_machine(name: str, here: dict[str, torch.Tensor], on_arm: str) -> None:
    assert EMULATOR is not None
    found = results(EMULATOR, on_arm, name)
    assert found.keys() == here.keys() and len(here) > 100
    for key, ours in here.items():
        # A product and sum may be rounded once or twice: a few bfloat16 round the other way.
        limit = 2e-6 if 'float32' in key or key.startswith('exp') else 8e-3
        top = ours.abs().max().item()
        torch.testing.assert_close(found[key], ours, rtol=0, atol=limit * top, msg=key)
    nothing = [key for key, ours in here.items() if not ours.any()]
    # What a problem has no use for: a gate, a step of its own, the state after both directions.
    assert {key.partition('/')[2] for key in nothing} <= {'grad z', 'grad delta', 'last state'}
