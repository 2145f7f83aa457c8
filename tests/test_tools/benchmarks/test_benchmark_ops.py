"""benchmark_ops.py at tiny sizes: what it writes is consistent. No time is judged."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import benchmark_ops
import pytest
import torch
from benchmarking import ops_report, scan_cases
from benchmarking.scan_cases import Case, make_work
from benchmarking.timing import OOM, Timing

from mmvim_ops import BackendStatus

CPU = torch.device('cpu')
QUICK = ['--sizes', 'nano', '--rounds', '2', '--seconds', '0']
TOOL = Path(benchmark_ops.__file__)


@pytest.fixture(scope='module')
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run over two lengths of the scan, with memory."""
    folder = tmp_path_factory.mktemp('ops') / 'new'
    lengths = ['--lengths', '20', '33', '--parts', 'scan', '--contenders', 'chunked', 'reference']
    threads = torch.get_num_threads()
    resident = dict.fromkeys(benchmark_ops.PASSES, 4096)  # a process each, tested below
    try:
        with mock.patch.object(benchmark_ops, 'resident_peaks', lambda *_: resident):
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
    (ceilings,) = result['ceilings']
    assert ceilings['threads'] == 1 and ceilings['copy_gigabytes_per_second'] > 0
    medians = {
        (r['length'], r['kind'], r['contender']): r['median_seconds'] for r in result['rows']
    }
    for row in result['rows']:
        length, kind, seconds = row['length'], row['kind'], row['median_seconds']
        assert row['over_ours'] == pytest.approx(seconds / medians[length, kind, 'chunked'])
        forward = medians[length, 'forward', row['contender']]
        assert row['over_forward'] == pytest.approx(seconds / forward)
        # B L E N, two directions; the backward pass needs them again
        count = 1 * length * 128 * 16 * 2 * (1 if kind == 'forward' else 2)
        assert row['gigaexp_per_second'] == pytest.approx(count / seconds / 1e9)
        ceiling = next(iter(row['gigaexp_per_second_of_loops'].values()))
        assert row['exp_share'] == pytest.approx(row['gigaexp_per_second'] / ceiling)
        bandwidth = ceilings['copy_gigabytes_per_second']
        assert row['copy_share'] == pytest.approx(row['gigabytes_per_second'] / bandwidth)


def test_both_compute_the_same(report: tuple[Path, dict[str, Any]]) -> None:
    _, result = report
    assert result['baseline'] == 'reference'
    for row in result['rows']:
        assert row['difference'] < 1e-6
        assert (row['difference'] == 0) == (row['contender'] == 'reference')


def test_memory_of_the_token_loop_holds_every_state(report: tuple[Path, dict[str, Any]]) -> None:
    _, result = report
    for row in result['rows']:
        states = 4 * row['length'] * row['inner_channels'] * row['states']
        if row['kind'] == 'forward':
            assert row['saved_bytes'] is None
        elif row['contender'] == 'reference':
            assert row['saved_bytes'] > 2 * states
        else:
            assert row['saved_bytes'] < states
        assert row['peak_bytes'] > 0
        assert row['resident_bytes'] == 4096


def test_no_absolute_time_of_a_cpu_is_shown(report: tuple[Path, dict[str, Any]]) -> None:
    folder, result = report
    text = (folder / 'ops.md').read_text()
    assert result['command'] in text and '| µs |' not in text and 'resident MiB' in text
    result = dict(result, device='cuda')
    assert '| µs |' in ops_report.to_markdown(result)


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
    assert 'no plot: matplotlib is not installed' in run.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ['ops.json', 'ops.md']
    rows = json.loads((tmp_path / 'ops.json').read_text())['rows']
    assert [row['part'] for row in rows] == ['scan', 'scan', 'inner', 'inner']
    assert all('peak_bytes' not in row for row in rows)


@pytest.mark.parametrize(
    ('argv', 'said'),
    [
        ([], 'required: --out'),
        (['--out', 'x', '--contenders', 'fast'], 'fast cannot run here: unknown; valid: auto'),
        (['--out', 'x', '--contenders', 'published'], 'published cannot run here'),
        (['--out', 'x', '--lengths', '0'], '--lengths takes numbers from 1 on'),
        (['--out', 'x', '--rounds', '0'], 'rounds=0 must be within'),
        (['--out', 'x', '--device', 'meta'], 'only cpu and cuda'),
        (['--out', 'x', '--execution', 'graphs'], 'a CPU has no CUDA graphs'),
        (['--out', 'x', '--splits', '4'], '--splits needs --device cuda'),
        (['--out', 'x', '--splits', '3'], 'invalid choice: 3'),
        (['--out', 'x', '--contenders', 'cuda S4'], 'cuda S4 cannot run here'),
        (['--out', 'x', '--device', 'nonsense'], 'nonsense'),
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
    if 'published' in argv and torch.cuda.is_available():
        pytest.skip('it may run here')
    with pytest.raises(SystemExit) as error:
        benchmark_ops.main(argv)
    assert error.value.code == 2
    assert said in capsys.readouterr().err


def test_failed_contenders_have_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(calls: dict[str, Any], *_: object) -> dict[str, Timing | str]:
        return {**{name: Timing((2.0, 2.0), 1) for name in calls}, 'chunked': OOM}

    argv = ['--out', str(tmp_path), *QUICK, '--lengths', '16', '--parts', 'scan', '--no-memory']
    monkeypatch.setattr(benchmark_ops, 'interleave', failing)
    assert benchmark_ops.main([*argv, '--contenders', 'chunked', 'reference']) == 0
    rows = json.loads((tmp_path / 'ops.json').read_text())['rows']
    assert [row['status'] for row in rows] == ['OOM', 'ok', 'OOM', 'ok']
    assert rows[1]['over_ours'] is None and rows[1]['median_seconds'] == 2
    assert '| chunked | OOM |' in (tmp_path / 'ops.md').read_text()


def test_a_failing_child_costs_its_figure_alone(capsys: pytest.CaptureFixture[str]) -> None:
    case = Case('scan', 'nano', 1, 16, 'float32')
    peaks = benchmark_ops.resident_peaks('chunked', case, 1)
    assert peaks.keys() == set(benchmark_ops.PASSES)
    assert all(peak is None or peak >= 0 for peak in peaks.values())
    assert benchmark_ops.resident_peaks('no such backend', case, 1) == {}
    assert 'no resident memory of no such backend' in capsys.readouterr().err


def test_backends_of_another_device_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    every = dict.fromkeys(('cpu', 'cuda', 'chunked', 'mamba_ssm'), BackendStatus(True, ''))
    monkeypatch.setattr(scan_cases, 'available_backends', lambda: every)

    def refused(device: str) -> set[str]:
        names = ('auto', *every, 'cuda S4')
        where = torch.device(device)
        return {name for name in names if scan_cases.contender_problem(name, 'scan', where)}

    assert refused('cpu') == {'cuda', 'cuda S4', 'mamba_ssm'}
    assert refused('cuda') == {'cpu'}


@pytest.mark.parametrize('part', scan_cases.PARTS)
@pytest.mark.parametrize('dtype', scan_cases.DTYPES)
def test_contenders_get_the_same_inputs(part: str, dtype: str) -> None:
    case = Case(part, 'nano', 2, 19, dtype)
    ours, theirs = (make_work(name, case, CPU).forward() for name in ('chunked', 'reference'))
    assert ours.shape == (2, 19, 128) and ours.dtype == scan_cases.DTYPES[dtype]
    assert ours.nbytes == case.output_bytes
    torch.testing.assert_close(ours, theirs)


def test_unavoidable_bytes() -> None:
    case = Case('scan', 'nano', 1, 10, 'bfloat16')
    work = make_work('chunked', case, CPU)
    # x_f, x_b, z of 128 channels and twice dt, B, C of 4 + 16 + 16, in 2 bytes
    activations = 10 * (3 * 128 + 2 * 36) * 2
    # twice dt weight, dt bias, A and D, in 4 bytes
    parameters = 2 * 128 * (4 + 1 + 16 + 1) * 4
    out = 10 * 128 * 2
    inputs = activations + parameters
    assert work.least_bytes(case.output_bytes) == {
        'forward': inputs + out,
        'forward + backward': inputs + out + inputs + out + inputs,
    }
