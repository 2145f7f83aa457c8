"""What the benchmark scripts share: samples, memory, ceilings, crossovers, reports."""

import json
import math
from collections.abc import Callable

import pytest
import torch
from benchmarking.backbone_report import crossings, verdict
from benchmarking.ceilings import exp_loops, mufu_rate
from benchmarking.memory import free_bytes, peak_bytes, resident_peak_bytes, saved_bytes
from benchmarking.report import significant, table, write
from benchmarking.timing import OOM, Effort, Timing, interleave, is_out_of_memory

CPU = torch.device('cpu')
MEBI = 2**20


def recording(name: str, log: list[str]) -> Callable[[], None]:
    return lambda: log.append(name)


def test_calls_are_taken_in_turn_from_a_rotating_start() -> None:
    log: list[str] = []
    calls = {name: recording(name, log) for name in 'abc'}
    effort = Effort(rounds=4, seconds=0, sample_seconds=1e-9)
    timings = interleave(calls, CPU, effort)
    assert ''.join(log) == 'aabbcc' + 'abc' + 'bca' + 'cab' + 'abc'
    assert list(timings) == ['a', 'b', 'c']
    for timing in timings.values():
        assert isinstance(timing, Timing)
        assert timing.loops == 1 and len(timing.samples) == 4


def test_short_calls_are_repeated_within_a_sample() -> None:
    log: list[str] = []
    timing = interleave({'a': recording('a', log)}, CPU, Effort(rounds=2, seconds=0))['a']
    assert isinstance(timing, Timing)
    assert timing.loops > 1
    assert len(log) == 2 + 2 * timing.loops


def test_warm_calls_are_not_warmed_again() -> None:
    log: list[str] = []
    effort = Effort(rounds=1, seconds=0, sample_seconds=1e-9)
    interleave({'a': recording('a', log), 'b': recording('b', log)}, CPU, effort, warm=True)
    assert ''.join(log) == 'ab' + 'ab'


def test_rounds_end_at_the_limit() -> None:
    effort = Effort(rounds=2, seconds=3600, sample_seconds=1e-9, max_rounds=7)
    timing = interleave({'a': lambda: None}, CPU, effort)['a']
    assert isinstance(timing, Timing) and len(timing.samples) == 7


def test_out_of_memory_becomes_a_row_and_other_errors_stay_errors() -> None:
    def greedy() -> object:
        return torch.empty(1 << 60, dtype=torch.uint8)

    effort = Effort(rounds=1, seconds=0)
    timings = interleave({'greedy': greedy, 'modest': lambda: None}, CPU, effort)
    assert timings['greedy'] == OOM
    assert isinstance(timings['modest'], Timing)
    with pytest.raises(ZeroDivisionError):
        interleave({'wrong': lambda: 1 / 0}, CPU, effort)
    assert is_out_of_memory(torch.OutOfMemoryError('x')) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError('shapes cannot be multiplied'))
    assert not is_out_of_memory(ValueError('out of memory'))
    with pytest.raises(RuntimeError) as wrapped:
        try:
            raise torch.OutOfMemoryError('x')
        finally:
            raise RuntimeError('the capture has failed')
    assert is_out_of_memory(wrapped.value)


@pytest.mark.parametrize('wrong', [dict(rounds=0), dict(rounds=200), dict(seconds=-1.0)])
def test_impossible_efforts_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match='rounds='):
        Effort(**wrong)


def test_median_and_quartiles() -> None:
    timing = Timing((5.0, 1.0, 2.0, 3.0, 4.0), loops=1)
    assert timing.median == 3
    assert timing.spread == pytest.approx((4 - 2) / 3)
    assert Timing((2.0,), loops=1).spread == 0


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


def test_resident_memory_counts_what_torch_does_not_see() -> None:
    size = 96 * MEBI
    peak = resident_peak_bytes(lambda: bytearray(b'x') * size)
    if peak is None:
        pytest.skip('the system does not report resident memory')
    assert size - MEBI <= peak < size + 32 * MEBI  # the system counts in batches of pages
    assert peak_bytes(lambda: bytearray(size), CPU) == 0


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

    case = Case('scan', 'nano', 1, 40, 'float32')
    work = make_work('chunked', case, CPU)
    activations = sum(tensor.nbytes for tensor in work.activations)
    saved = saved_bytes(work.forward_with_graph, work.parameters)
    state = 2 * case.channels * 16 * 4
    assert activations < saved and (saved - activations) % state == 0
    reference = make_work('reference', case, CPU)
    assert saved_bytes(reference.forward_with_graph, reference.parameters) > 40 * state


def test_free_memory_is_less_than_all_of_it() -> None:
    free = free_bytes()
    assert free is None or 0 < free < 2**60


def test_loops_of_exponentials_count_their_threads() -> None:
    loops = exp_loops(CPU)
    assert loops[-1].name == 'torch.exp'
    assert all(loop.count % torch.get_num_threads() == 0 for loop in loops)
    for loop in loops:
        loop.call()


def test_special_function_rate_of_a_gpu() -> None:
    # 132 multiprocessors at 1755 MHz: 403 M exponentials in 109 µs
    assert mufu_rate(132, 1755) == pytest.approx(3.7066e12, rel=1e-4)


def test_a_power_law_crosses_where_it_is_one() -> None:
    sizes = [224, 384, 512, 768, 1024]
    assert crossings(sizes, [(450 / size) ** 1.5 for size in sizes]) == pytest.approx([450])


@pytest.mark.parametrize(
    ('ratios', 'expected'),
    [
        ([2, 1.5, 1.1], []),
        ([0.9, 0.8, 0.7], []),
        ([2, 1, 0.5], [200]),
        ([2, 1.5, 1], [400]),
        ([2, 0.5, 2], [math.sqrt(100 * 200), math.sqrt(200 * 400)]),
        ([1, 1, 1], [100, 200, 400]),
    ],
)
def test_crossings(ratios: list[float], expected: list[float]) -> None:
    assert crossings([100, 200, 400], ratios) == pytest.approx(expected)


def test_crossings_of_nothing_and_of_nonsense() -> None:
    assert crossings([], []) == [] == crossings([224], [0.5])
    with pytest.raises(ValueError, match='increase'):
        crossings([200, 100], [1, 2])
    with pytest.raises(ValueError, match='one ratio a size'):
        crossings([200, 300], [1])


def test_the_verdict_names_the_sizes_where_we_lose() -> None:
    text = verdict('Vim', 'DeiT', [224, 512, 1024], [1.25, 1.0, 0.4])
    assert text == (
        'Vim loses to DeiT at 224 (1.25), equals DeiT at 512 (1.00), beats DeiT at 1024 (0.40); '
        'the times meet at about 512 pixels.'
    )
    assert 'the times do not meet there' in verdict('Vim', 'DeiT', [224, 384], [3.0, 2.0])
    assert 'nothing was measured' in verdict('Vim', 'DeiT', [], [])


@pytest.mark.parametrize(
    ('value', 'text'),
    [(123.4, '123'), (1234.5, '1230'), (0.04567, '0.0457'), (9.996, '10.0'), (0, '0'), (1, '1.00')],
)
def test_significant_digits(value: float, text: str) -> None:
    assert significant(value) == text


def test_tables_keep_their_columns() -> None:
    lines = table([[1, None, 'a|b'], ['x', 2.5, '–']], ['p', 'q', 'r']).splitlines()
    assert lines == ['| p | q | r |', '|---|---|---|', '| 1 | – | a\\|b |', '| x | 2.5 | – |']


def test_json_refuses_what_is_no_number(tmp_path) -> None:
    write(tmp_path, 'a', dict(a=1.5), '# A\n')
    with pytest.raises(ValueError):
        write(tmp_path, 'a', dict(a=math.nan), '')
    assert json.loads((tmp_path / 'a.json').read_text()) == dict(a=1.5)
    assert (tmp_path / 'a.md').read_text() == '# A\n'
