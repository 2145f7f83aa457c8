"""The scan without torch: what it compiles, and that its check finds faults; on the host."""

import shutil
from functools import partial
from pathlib import Path

import pytest
from benchmarking import cuda_scan
from benchmarking.cuda_scan import HEADERS, USUAL, Instance

pytestmark = pytest.mark.skipif(shutil.which('g++') is None, reason='no g++')


def check(out: Path, *words: str) -> int:
    return cuda_scan.main(['--host', '--out', str(out), *words])


slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    'instance', ['bfloat16:8:vim', slow('float32:16:any'), slow('float16:8:5')]
)
def test_check(instance: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path, '--instances', instance) == 0
    found = capfd.readouterr().out
    assert f'## {instance}: check' in found and found.endswith('All right: 1 instances.\n')
    assert 'B 1, L 513, E 16, R 12, slow decays: largest rms' in found


@pytest.mark.parametrize(
    ('file', 'right', 'wrong', 'found'),
    [
        ('scan_forward.h', 'y[j] *= silu(', 'y[j] *= sigmoid(', 'WRONG: out'),
        slow('scan_backward.h', 'grad_dt.at[0] *= kLn2;', '', 'WRONG: grad of dbl, in parts'),
        slow('portable.h', 'to[i] += values.at[i]', 'to[i] = values.at[i]', 'dbl, added up'),
        slow('scan_grads.h', 'out[(p.states + p.rank) * ld] = grad_D;', '', 'grads of parameters'),
        ('scan_grads.h', 'p.rank + 1) * ld] = grad_bias;', 'p.rank + 2) * ld] = 0;', 'beside a'),
        slow('scan_forward.h', 'own.D = exists', 'throw 0; own.D = exists', 'ended by signal'),
    ],
)
def test_faults_are_found(
    file: str, right: str, wrong: str, found: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a changed copy of the headers."""
    headers = tmp_path / 'headers'
    shutil.copytree(HEADERS, headers)
    text = (headers / file).read_text()
    assert right in text
    (headers / file).write_text(text.replace(right, wrong))
    words = '--instances', 'float32:8:vim', '--headers', str(headers)
    assert check(tmp_path / 'out', *words) == 1
    said = capfd.readouterr().out
    assert found in said and said.endswith('Wrong:\nfloat32:8:vim: check\n')


def test_what_cannot_be_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = '--instances', 'float32:8:any', '--headers', str(tmp_path)
    assert check(tmp_path / 'out', *words) == 1
    said = capfd.readouterr().out
    assert 'launch.h' in said and said.endswith('Wrong:\nfloat32:8:any: not compiled\n')
    monkeypatch.setenv('CXX', '/nowhere/g++')
    assert check(tmp_path / 'out', *words) == 1
    assert '/nowhere/g++ cannot be run' in capfd.readouterr().out


@pytest.mark.parametrize('text', ['bfloat16:8', 'double:8:vim', 'float32:x:any', 'float32:8:33'])
def test_misspelt_instances(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        check(tmp_path, '--instances', text)
    assert f'{text!r} is no instance; valid: DTYPE:SPLIT:KIND' in capsys.readouterr().err


def test_steps_that_need_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        check(tmp_path, '--steps', 'time')
    assert '--host has nothing to time' in capsys.readouterr().err


def test_the_usual_instances(tmp_path: Path) -> None:
    """All kernels of half precision, each once, by commands of nvcc."""
    assert len(set(USUAL)) == len(USUAL)
    words = cuda_scan.command(Instance('bfloat16', 8, 'vim'), tmp_path / 'x', HEADERS, 'sm_90')
    assert words[0] == 'nvcc' and '-arch=sm_90' in words and '-DSCAN_TILE=64' in words
    assert {each.split for each in USUAL if each.kind == 'any'} == {1, 2, 4, 8, 16}
