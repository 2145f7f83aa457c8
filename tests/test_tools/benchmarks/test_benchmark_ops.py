"""benchmark_ops.py at tiny sizes: what it writes is consistent. No time is judged."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import benchmark_ops
import pytest
import torch
from benchmarking import harness, scan_cases
from benchmarking.scan_cases import PASSES, Case, make_work

CPU = torch.device('cpu')
QUICK = ['--sizes', 'nano', '--rounds', '2', '--seconds', '0']
TOOL = Path(benchmark_ops.__file__)


@pytest.fixture(scope='module')
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run over two lengths of the scan, with memory."""
    folder = tmp_path_factory.mktemp('ops') / 'new'
    lengths = ['--lengths', '20', '33', '--parts', 'scan', '--contenders', 'chunked', 'reference']
    threads = torch.get_num_threads()
    try:
        code = benchmark_ops.main(['--out', str(folder), *QUICK, *lengths, '--threads', '1'])
    finally:
        torch.set_num_threads(threads)
    assert code == 0
    return folder, json.loads((folder / 'ops.json').read_text())


def test_all_files_and_all_rows_are_there(report: tuple[Path, dict[str, Any]]) -> None:
    folder, result = report
    assert {file.name for file in folder.iterdir()} == {'ops.md', 'ops.json', 'ops.png'}
    assert result['command'].endswith('--threads 1')
    keys = [(row['length'], row['kind'], row['contender']) for row in result['rows']]
    passes = ('forward', 'forward + backward')
    names = ('chunked', 'reference')
    assert keys == [(L, kind, name) for L in (20, 33) for kind in passes for name in names]
    assert all(row['status'] == 'ok' for row in result['rows'])


def test_figures_follow_from_the_medians(report: tuple[Path, dict[str, Any]]) -> None:
    _, result = report
    medians = {(r['length'], r['kind'], r['contender']): r['seconds'] for r in result['rows']}
    for row in result['rows']:
        length, kind, seconds = row['length'], row['kind'], row['seconds']
        ours = medians[length, kind, 'chunked']
        assert row['seconds_over_first'] == pytest.approx(seconds / ours)
        forward = medians[length, 'forward', row['contender']]
        assert row.get('over_forward', 1) == pytest.approx(seconds / forward)
        assert ('over_forward' in row) == (kind != 'forward')
        # B L E N, two directions; the backward pass needs them again
        count = 1 * length * 128 * 16 * 2 * (1 if kind == 'forward' else 2)
        assert row['gigaexp_per_second'] == pytest.approx(count / seconds / 1e9)
        share = row['gigaexp_per_second'] / row['gigaexp_per_second_of_loop']
        assert row['exp_share'] == pytest.approx(share)
        case = Case('scan', 'nano', 1, 'float32', length)
        moved = make_work('chunked', case, CPU).least_bytes(kind) / 1e9 / seconds
        assert row['copy_share'] == pytest.approx(moved / row['gigabytes_per_second_of_copy'])


def test_both_compute_the_same(report: tuple[Path, dict[str, Any]]) -> None:
    _, result = report
    for row in result['rows']:
        assert row['difference'] < 1e-6
        assert (row['difference'] == 0) == (row['contender'] == 'chunked')


def test_another_output_shows() -> None:
    case = Case('scan', 'nano', 1, 'float32', 8)
    works = {name: make_work(name, case, CPU) for name in ('chunked', 'reference')}
    works['wrong'] = works['chunked']._replace(run=lambda *_: 3 * works['chunked'].forward())
    differences = benchmark_ops.compare(works)
    assert differences['wrong'] == pytest.approx(2) and differences['reference'] < 1e-6


def test_memory_of_the_token_loop_holds_every_state(report: tuple[Path, dict[str, Any]]) -> None:
    _, result = report
    for row in result['rows']:
        states = 4 * row['length'] * 128 * scan_cases.STATES
        if row['kind'] == 'forward':
            assert 'saved_bytes' not in row
        elif row['contender'] == 'reference':
            assert row['saved_bytes'] > 2 * states
        else:
            assert row['saved_bytes'] < states
        assert row['peak_bytes'] > 0


def test_no_absolute_time_of_a_cpu_is_shown(report: tuple[Path, dict[str, Any]]) -> None:
    folder, result = report
    text = (folder / 'ops.md').read_text()
    assert result['command'] in text and '| µs |' not in text
    assert '**Ceilings**: copy ' in text and ' GB/s; exponentials ' in text


def test_it_runs_with_torch_alone(tmp_path: Path) -> None:
    blocked = ('mmengine', 'mmcv', 'mmseg', 'mmvim', 'matplotlib', 'rich', 'safetensors')
    argv = ['--out', str(tmp_path), *QUICK, '--lengths', '16', '--contenders', 'chunked']
    code = (
        f'import sys\nsys.modules.update(dict.fromkeys({blocked!r}))\n'
        f'sys.path.insert(0, {str(TOOL.parent)!r})\n'
        f'import benchmark_ops\nsys.exit(benchmark_ops.main({[*argv, "--no-memory"]!r}))'
    )
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert 'no plot: ' in run.stderr and 'matplotlib' in run.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ['ops.json', 'ops.md']
    rows = json.loads((tmp_path / 'ops.json').read_text())['rows']
    assert [row['part'] for row in rows] == ['scan', 'scan', 'inner', 'inner']
    assert all('peak_bytes' not in row for row in rows)


@pytest.mark.parametrize(
    ('argv', 'said'),
    [
        ([], 'required: --out'),
        (['--out', 'x', '--contenders', 'fast'], "invalid choice: 'fast'"),
        (['--out', 'x', '--lengths', '0'], 'argument --lengths: takes numbers from 1 on, got 0'),
        (['--out', 'x', '--rounds', '0'], 'argument --rounds: takes numbers from 1 on'),
        (['--out', 'x', '--device', 'meta'], "invalid choice: 'meta'"),
        (['--out', 'x', '--execution', 'graphs'], 'a CPU has no CUDA graphs'),
        (['--out', 'x', '--splits', '3'], "invalid choice: '3'"),
        (['--out', '/dev/null/x'], '/dev/null/x'),
    ],
)
def test_bad_arguments(
    argv: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        benchmark_ops.main(argv)
    assert error.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU here')
def test_a_gpu_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark_ops.main(['--out', 'x', '--device', 'cuda'])
    assert 'torch sees no CUDA device' in capsys.readouterr().err


def test_failed_contenders_have_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(calls: dict[str, Any], _: object) -> dict[str, dict[str, Any]]:
        timing = dict(status='ok', seconds=2.0, spread=0.0, rounds=2)
        return {**{name: dict(timing) for name in calls}, 'chunked': dict(status='OOM')}

    argv = ['--out', str(tmp_path), *QUICK, '--lengths', '16', '--parts', 'scan', '--no-memory']
    monkeypatch.setattr(harness, 'interleave', failing)
    names = ['chunked', 'reference', 'published', 'cuda']
    assert benchmark_ops.main([*argv, '--contenders', *names]) == 0
    rows = json.loads((tmp_path / 'ops.json').read_text())['rows']
    assert [row['contender'] for row in rows] == 2 * ['chunked', 'reference', 'cuda']
    assert [row['status'] for row in rows[:2]] == ['OOM', 'ok'] == [r['status'] for r in rows[3:5]]
    assert 'seconds_over_first' not in rows[1] and rows[1]['seconds'] == 2
    assert '| chunked | OOM |' in (tmp_path / 'ops.md').read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason='they may run here')
@pytest.mark.parametrize(
    ('name', 'said'),
    [('published', "No module named 'causal_conv1d_cuda'"), ('cuda', 'it needs CUDA tensors')],
)
def test_a_contender_that_cannot_run_says_why(name: str, said: str, tmp_path: Path) -> None:
    argv = ['--out', str(tmp_path), *QUICK, '--lengths', '16', '--parts', 'inner']
    assert benchmark_ops.main([*argv, '--contenders', 'chunked', name]) == 0
    rows = json.loads((tmp_path / 'ops.json').read_text())['rows']
    assert [row['contender'] for row in rows if row['status'] == 'ok'] == 2 * ['chunked']
    assert all(said in row['status'] for row in rows[1::2])


def test_nothing_is_measured_of_the_published_scan_alone(tmp_path: Path) -> None:
    argv = ['--out', str(tmp_path), *QUICK, '--lengths', '16', '--contenders', 'published']
    assert (
        benchmark_ops.measure(
            Case('scan', 'nano', 1, 'float32', 16), benchmark_ops.parse_arguments(argv)
        )
        == []
    )


@pytest.mark.parametrize('part', scan_cases.PARTS)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_contenders_get_the_same_inputs(part: str, dtype: str) -> None:
    case = Case(part, 'nano', 2, dtype, 19)
    ours, theirs = (make_work(name, case, CPU).forward() for name in ('chunked', 'reference'))
    assert ours.shape == (2, 19, 128) and ours.dtype == getattr(torch, dtype)
    torch.testing.assert_close(ours, theirs)


def test_unavoidable_bytes() -> None:
    work = make_work('chunked', Case('scan', 'nano', 1, 'bfloat16', 10), CPU)
    # x_f, x_b, z of 128 channels and twice dt, B, C of 4 + 16 + 16, in 2 bytes
    activations = 10 * (3 * 128 + 2 * 36) * 2
    # twice dt weight, dt bias, A and D, in 4 bytes
    parameters = 2 * 128 * (4 + 1 + 16 + 1) * 4
    out = 10 * 128 * 2
    inputs = activations + parameters
    assert [work.least_bytes(kind) for kind in PASSES] == [
        inputs + out,
        inputs + out + inputs + out + inputs,
    ]
    inner = make_work('chunked', Case('inner', 'nano', 1, 'bfloat16', 10), CPU)
    # xz; convolutions of width 4 with bias and x_proj beside the others
    inputs = 10 * 256 * 2 + parameters + 2 * (128 * 5 + 36 * 128) * 4
    assert inner.least_bytes('forward') == inputs + out
