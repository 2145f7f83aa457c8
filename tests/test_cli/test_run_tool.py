"""The wrapper around a tool's main."""

from collections.abc import Sequence

import pytest
import torch

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
    # Not even mmcv's sentence, where it does not come from a data set.
    with pytest.raises(type(error)):
        run_tool(raising(error), [])  # type: ignore[arg-type]


def test_an_operator_that_mmcv_lacks_on_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    mmcv = pytest.importorskip('mmcv')
    ops = pytest.importorskip('mmcv.ops')

    def main(argv: Sequence[str]) -> None:
        # No build of mmcv has kernels for tensors without data: as a GPU to one for CPUs.
        boxes = torch.rand(3, 5, device='meta')
        ops.roi_align(torch.rand(1, 2, 8, 8, device='meta'), boxes, 7, 1.0, 0, 'avg', True)

    assert run_tool(main, []) == 1
    said = capsys.readouterr().err
    assert said.startswith(
        'error: mmcv was built without operators for meta devices, and this model needs '
        'roi_align_forward there: rebuild it beside this torch'
    )
    assert f'mmcv=={mmcv.__version__}' in said
    assert said.count('\n') == 1


def test_an_mmcv_without_operators(capsys: pytest.CaptureFixture[str]) -> None:
    error = ModuleNotFoundError("No module named 'mmcv._ext'", name='mmcv._ext')
    assert run_tool(raising(error), []) == 1  # type: ignore[arg-type]
    assert 'without its operators' in capsys.readouterr().err


def test_frames_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError):
        run_tool(raising(UserError('x')), ['--traceback'])  # type: ignore[arg-type]
    monkeypatch.setenv('MMVIM_TRACEBACK', '1')
    with pytest.raises(UserError):
        run_tool(raising(UserError('x')), [])  # type: ignore[arg-type]


def test_first_line() -> None:
    assert first_line(RuntimeError('one\ntwo')) == 'one'
    assert first_line(RuntimeError()) == 'RuntimeError'
