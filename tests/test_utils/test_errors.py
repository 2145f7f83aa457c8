"""The wrapper around a tool's main."""

from collections.abc import Sequence

import pytest

from mmvim.utils.errors import UsageError, UserError, first_line
from mmvim.utils.run_tool import run_tool


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
    # Not even mmcv's sentence, where it does not come from a data set.
    with pytest.raises(type(error)):
        run_tool(raising(error), [])  # type: ignore[arg-type]


def test_frames_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError):
        run_tool(raising(UserError('x')), ['--traceback'])  # type: ignore[arg-type]
    monkeypatch.setenv('MMVIM_TRACEBACK', '1')
    with pytest.raises(UserError):
        run_tool(raising(UserError('x')), [])  # type: ignore[arg-type]


def test_first_line() -> None:
    assert first_line(RuntimeError('one\ntwo')) == 'one'
    assert first_line(RuntimeError()) == 'RuntimeError'
