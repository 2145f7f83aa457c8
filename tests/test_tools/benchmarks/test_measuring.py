"""What the benchmark scripts share: samples, memory, ceilings, reports."""

import json
import math
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarking import harness, measuring
from benchmarking.ceilings import copy_bandwidth, exp_loop
from benchmarking.measuring import interleave, peak_bytes, saved_bytes
from benchmarking.report import significant, table, write

from mmvim_ops import loading

CPU = torch.device('cpu')
MEBI = 2**20


def effort(rounds: int = 1, seconds: float = 0) -> Namespace:
    return Namespace(device=CPU, rounds=rounds, seconds=seconds, no_memory=False)


def recording(name: str, log: list[str]) -> Callable[[], None]:
    return lambda: log.append(name)


def test_calls_are_taken_in_turn_from_a_rotating_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, '_SAMPLE_SECONDS', 1e-9)
    log: list[str] = []
    timings = interleave({name: recording(name, log) for name in 'abc'}, effort(rounds=4))
    assert ''.join(log) == 'aabbcc' + 'abc' + 'bca' + 'cab' + 'abc'
    assert [timings[name]['rounds'] for name in 'abc'] == [4, 4, 4]


def test_short_calls_are_repeated_within_a_sample() -> None:
    log: list[str] = []
    timing = interleave({'a': recording('a', log)}, effort(rounds=2))['a']
    loops = (len(log) - 2) / 2
    assert loops > 1 and loops == int(loops)
    assert timing['seconds'] * loops < 10 and timing['rounds'] == 2


def test_rounds_end_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, '_SAMPLE_SECONDS', 1e-9)
    monkeypatch.setattr(measuring, '_MAX_ROUNDS', 7)
    assert interleave({'a': lambda: None}, effort(2, 3600))['a']['rounds'] == 7


def test_out_of_memory_becomes_a_row_and_other_errors_stay_errors(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def greedy() -> object:
        return torch.empty(1 << 60, dtype=torch.uint8)

    def full() -> object:
        raise torch.OutOfMemoryError('x')

    def refused() -> object:
        raise RuntimeError('no kernel for this\nat line 3')

    calls = {'greedy': greedy, 'full': full, 'modest': lambda: None, 'none': refused}
    timings = interleave(calls, effort())
    assert "can't allocate memory" in timings['greedy']['status']
    assert timings['full'] == dict(status='OOM')
    assert timings['none'] == dict(status='no kernel for this')
    assert timings['modest']['status'] == 'ok'
    assert capsys.readouterr().err.endswith('full: OOM\nnone: no kernel for this\n')
    with pytest.raises(ZeroDivisionError):
        interleave({'wrong': lambda: 1 / 0}, effort())


def test_a_contest_compares_with_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(calls: dict[str, Any], _: Namespace) -> dict[str, Any]:
        log.append(list(calls))
        return {name: dict(status='ok', seconds=2.0 ** len(name)) for name in calls}

    def failing() -> Callable[[], object]:
        raise ImportError('no such module')

    log: list[Any] = []
    monkeypatch.setattr(harness, 'interleave', timed)
    x = torch.ones(MEBI // 4)
    contenders = {'a': lambda: x.clone, 'bb': lambda: lambda: torch.cat((x, x)), 'c': failing}
    rows = harness.contest(contenders, 'eager', effort(), {'a': MEBI}, {'loop': lambda: None})
    assert log == [['a', 'bb', 'loop']] and list(rows) == ['a', 'bb', 'c', 'loop']
    assert rows['c'] == dict(status='no such module')
    assert rows['a'] == dict(
        status='ok', seconds=2, peak_bytes=2 * MEBI, seconds_over_first=1, peak_bytes_over_first=1
    )
    assert rows['bb']['seconds_over_first'] == 2 and rows['bb']['peak_bytes_over_first'] == 1
    rows = harness.contest({'c': failing, 'a': contenders['a']}, 'eager', effort(), {}, {})
    assert rows['a'] == dict(status='ok', seconds=2, peak_bytes=MEBI)


def test_median_and_quartiles(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = iter([9.0, 9.0, 5.0, 1.0, 2.0, 3.0, 4.0])
    monkeypatch.setattr(measuring, 'sample', lambda *_: next(samples))
    timing = interleave({'a': lambda: None}, effort(rounds=5))['a']
    assert timing == dict(status='ok', seconds=3, spread=pytest.approx((4 - 2) / 3), rounds=5)


def test_peak_counts_what_is_alive_at_once() -> None:
    x = torch.ones(MEBI // 4)

    def call() -> torch.Tensor:
        a = x + 1  # 1 MiB
        b = a * 2  # 2 MiB
        del a
        c = b.exp()  # 2 MiB
        return torch.cat((b, c))  # 4 MiB

    assert peak_bytes(call, CPU) == 4 * MEBI
    assert peak_bytes(lambda: x.view(2, -1), CPU) == 0


def test_saved_bytes_of_known_ops() -> None:
    x = torch.ones(1000, requires_grad=True)
    assert saved_bytes(lambda: x + 1) == 0
    assert saved_bytes(lambda: x.sigmoid()) == 4000  # its output
    y = torch.ones(1000, requires_grad=True)
    assert saved_bytes(lambda: x * y) == 8000
    assert saved_bytes(lambda: x * y, parameters=[y]) == 4000
    assert saved_bytes(lambda: x * x) == 4000  # twice the same storage
    wide = torch.ones(1000, 2)
    assert saved_bytes(lambda: x * wide[:, 0]) == 8000  # the view keeps all of it alive


def test_saved_bytes_of_the_scan_are_its_inputs_and_states() -> None:
    from benchmarking.scan_cases import Case, make_work

    case = Case('scan', 'nano', 1, 'float32', 40)
    work = make_work('chunked', case, CPU)
    activations = sum(tensor.nbytes for tensor in work.activations)
    saved = saved_bytes(work.forward, work.parameters)
    state = 2 * case.channels * 16 * 4
    assert activations < saved and (saved - activations) % state == 0
    reference = make_work('reference', case, CPU)
    assert saved_bytes(reference.forward, reference.parameters) > 40 * state


def test_loops_of_exponentials_count_their_threads() -> None:
    call, count = exp_loop(CPU)
    assert count % torch.get_num_threads() == 0
    if loading.problem() is None:
        call()
    else:
        with pytest.raises(RuntimeError):
            call()


def test_a_copy_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarking import ceilings

    monkeypatch.setattr(ceilings, 'interleave', lambda *_: {'copy': dict(seconds=0.5)})
    copy_bandwidth.cache_clear()
    assert copy_bandwidth(CPU, 1) == 2 * 2**28 / 0.5
    monkeypatch.setattr(ceilings, 'interleave', None)
    assert copy_bandwidth(CPU, 1) == 2 * 2**28 / 0.5
    copy_bandwidth.cache_clear()


@pytest.mark.parametrize(
    ('value', 'text'),
    [
        (123.4, '123'),
        (1234.4, '1234'),
        (0.04567, '0.0457'),
        (9.996, '10.0'),
        (99.96, '100'),
        (1, '1.00'),
    ],
)
def test_significant_digits(value: float, text: str) -> None:
    assert significant(value) == text


def test_tables_keep_their_columns() -> None:
    columns = {name: (name, str) for name in 'pqrs'}
    rows = [dict(status='ok', p=1, r='a|b'), dict(status='OOM', p=1, q=2, s=4)]
    assert table(rows, columns).splitlines() == [
        '| p | q | r | s |',
        '|---|---|---|---|',
        '| 1 | – | a\\|b | – |',
        '| 1 | 2 | OOM |',
    ]


def test_a_report_is_grouped_and_json_refuses_what_is_no_number(tmp_path: Path) -> None:
    rows = [dict(status='ok', size=size, batch=b, x=b, y=1.5) for size in 'st' for b in (1, 2)]
    result = dict(command='run it', machine=dict(cpu='z'), versions={}, rows=rows)
    columns = {'b': ('batch', str)}
    plot: Any = dict(x='x', panels={'Y': 'y'}, line='{size}', stars={'y': {3: 1.0}})
    write(tmp_path, 'a', result, ['# A', 'read'], ('size', 'batch'), columns, **plot)
    assert json.loads((tmp_path / 'a.json').read_text()) == result
    text = (tmp_path / 'a.md').read_text()
    assert text.startswith('# A\n\n```bash\nrun it\n```\n\n**Machine**: cpu z.\n')
    assert text.count('\n## ') == 4 and '\n## t, B 2\n\n| b |\n|---|\n| 2 |\n' in text
    assert (tmp_path / 'a.png').stat().st_size > 1000
    with pytest.raises(ValueError):
        write(tmp_path, 'a', dict(result, x=math.nan), [''], ('size',), columns, **plot)
