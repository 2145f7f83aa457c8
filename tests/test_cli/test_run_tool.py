"""The wrapper around a tool's main."""

import errno
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import forked
import pytest
from torch.utils.data import DataLoader, Dataset

from mmvim.cli.run_tool import run_tool
from mmvim.errors import UsageError, UserError, first_line


def raising(error: BaseException) -> object:
    """A main that fails with ``error``."""

    def main(argv: Sequence[str]) -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ('error', 'code', 'line'),
    [
        (UserError('two\n  lines'), 1, 'error: two lines\n'),
        (UsageError('bad flag'), 2, 'error: bad flag\n'),
        (KeyboardInterrupt(), 130, 'interrupted\n'),
    ],
)
def test_known_failures_are_one_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool(raising(error), []) == code  # type: ignore[arg-type]
    assert capsys.readouterr().err == line


def test_success_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool(lambda argv: dict(metric=argv), ['a']) == 0
    assert capsys.readouterr() == ('', '')


@pytest.mark.parametrize(
    'error', [ValueError('x'), KeyError('x'), AssertionError('failed to load image: a.png')]
)
def test_unknown_failures_are_not_swallowed(error: Exception) -> None:
    with pytest.raises(type(error)):
        run_tool(raising(error), [])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ('error', 'line'),
    [
        (OSError(errno.ENOSPC, 'No space left on device'), '[Errno 28] No space left on device'),
        (FileNotFoundError(errno.ENOENT, 'No such file', 'a.pth'), 'a.pth: No such file'),
    ],
)
def test_errors_of_the_system_are_one_line(
    error: OSError, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool(raising(error), []) == 1  # type: ignore[arg-type]
    assert capsys.readouterr().err == f'error: {line}\n'


class Refusing(Dataset[int]):
    """Raises an error for every sample."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        raise self.error


@pytest.mark.parametrize('error', [UserError('a.png is cut'), FileNotFoundError('a.png is gone')])
def test_an_error_from_a_data_worker_is_one_line(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool(lambda argv: list(DataLoader(Refusing(error), num_workers=1)), []) == 1
    assert capsys.readouterr().err == f'error: {error}\n'


def test_a_data_worker_that_fails_by_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(KeyError):
        run_tool(lambda argv: list(DataLoader(Refusing(KeyError('x')), num_workers=1)), [])


SCRIPT = """
import logging, sys
from mmvim.cli.run_tool import run_tool

def main(argv):
    log = logging.getLogger('tool')
    log.addHandler(logging.FileHandler(argv[0]))
    for _ in range(3):
        log.warning('a line')
    print('done')

sys.exit(run_tool(main))
"""


needs_full = pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')


def lines(stderr: str) -> list[str]:
    assert 'Traceback' not in stderr
    return [line for line in stderr.splitlines() if 'Warning' not in line]


@needs_full
def test_a_full_disk_behind_stdout_is_one_line(tmp_path: Path) -> None:
    """Python itself would complain once more when it ends."""
    with open('/dev/full', 'w') as stdout:
        done = subprocess.run(
            [sys.executable, '-c', SCRIPT, tmp_path / 'log'],
            env={**os.environ, 'PYTHONUNBUFFERED': ''},
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert lines(done.stderr) == ['error: [Errno 28] No space left on device']


@needs_full
def test_a_full_disk_behind_a_log_is_one_line() -> None:
    done = forked.run(SCRIPT, '/dev/full')
    assert done.returncode == 0
    said = ['warning: /dev/full cannot be written (No space left on device)']
    assert lines(done.stderr) == said


def test_frames_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError):
        run_tool(raising(UserError('x')), ['--traceback'])  # type: ignore[arg-type]
    monkeypatch.setenv('MMVIM_TRACEBACK', '1')
    with pytest.raises(UserError):
        run_tool(raising(UserError('x')), [])  # type: ignore[arg-type]


def test_first_line() -> None:
    assert first_line(RuntimeError('one\ntwo')) == 'one'
    assert first_line(RuntimeError()) == 'RuntimeError'
