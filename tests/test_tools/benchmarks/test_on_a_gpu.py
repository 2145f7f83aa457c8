"""The branches that only a GPU takes, with stand-ins for torch.cuda: no GPU has to be there."""

import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import benchmark_ops
import pytest
import torch
from benchmarking import build_baseline, ceilings, harness, measuring, scan_cases
from benchmarking.measuring import capture, interleave, peak_bytes, sample
from benchmarking.scan_cases import PASSES, Case, Work

from mmvim_ops import loading

CPU, CUDA = torch.device('cpu'), torch.device('cuda')
LOOP = 1000  # exponentials of a call that takes 2 ms


class Gpu:
    """What happened on it, in order, and what it would say."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.milliseconds = 0.0
        self.splits: list[tuple[int, int, bool]] = []

    def run(self, what: str) -> None:
        """A kernel that takes 2 ms."""
        self.log.append(what)
        self.milliseconds += 2.0


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu()

    class Stream:
        def wait_stream(self, other: Any) -> None:
            gpu.log.append('wait')

    class Graph:
        def replay(self) -> None:
            gpu.run('replay')

    @contextmanager
    def within(what: Any) -> Iterator[None]:
        gpu.log.append(f'in {type(what).__name__}')
        yield
        gpu.log.append('out')

    properties = SimpleNamespace(
        name='H200', multi_processor_count=132, total_memory=141 * 2**30, uuid='1234'
    )
    stand_ins = dict(
        Stream=Stream,
        CUDAGraph=Graph,
        current_stream=Stream,
        stream=within,
        graph=within,
        synchronize=lambda device=None: None,
        empty_cache=lambda: None,
        get_device_properties=lambda device: properties,
        memory_allocated=lambda device: 100,
        reset_peak_memory_stats=lambda device: None,
        max_memory_allocated=lambda device: 1148,
        is_available=lambda: True,
    )
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    clock = SimpleNamespace(perf_counter=lambda: gpu.milliseconds / 1e3)
    monkeypatch.setattr(measuring, 'time', clock)
    return gpu


@pytest.fixture
def contenders(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """The kernels of a GPU: each pass takes 2 ms, more than it does on the CPU beneath."""
    here, cuda_problem = scan_cases.make_work, {'cuda S8': 'a block needs too much memory'}

    def make_work(name: str, case: Case, device: torch.device) -> Work:
        assert device == CUDA
        on_cpu = here('published' if name == 'published' else 'chunked', case, CPU)

        def run(*inputs: Any) -> torch.Tensor:
            if name in cuda_problem:
                raise RuntimeError(cuda_problem[name])
            gpu.run(name)
            return on_cpu.run(*inputs)

        return on_cpu._replace(run=run, within=here(name, case, CPU).within)

    loop = (lambda: gpu.run('loop'), LOOP)
    monkeypatch.setattr(scan_cases, 'make_work', make_work)
    monkeypatch.setattr(benchmark_ops, 'exp_loop', lambda device: loop)
    monkeypatch.setattr(benchmark_ops, 'copy_bandwidth', lambda device, threads: 4e12)
    monkeypatch.setattr(
        loading,
        'force_splits',
        lambda f=0, b=0, general=False: gpu.splits.append((f, b, general)),
        raising=False,
    )
    return gpu


@pytest.mark.usefixtures('published_kernels')
def test_a_whole_run(contenders: Gpu, tmp_path: Path) -> None:
    argv = ['--out', str(tmp_path), '--device', 'cuda', '--sizes', 'nano', '--lengths', '16']
    argv += ['--rounds', '2', '--seconds', '0', '--dtypes', 'bfloat16', '--parts', 'inner']
    argv += ['--contenders', 'auto', 'chunked', 'published', '--splits', '2', '4', '8', '4-general']
    assert benchmark_ops.main([*argv, '--execution', 'eager', 'graphs']) == 0
    result = json.loads((tmp_path / 'ops.json').read_text())
    names = ['auto', 'chunked', 'published', 'cuda S2', 'cuda S4', 'cuda S8', 'cuda S4-general']
    assert [(r['execution'], r['kind'], r['contender']) for r in result['rows']] == [
        (how, kind, name) for how in ('eager', 'graphs') for kind in PASSES for name in names
    ]
    for row in result['rows']:
        if row['contender'] == 'cuda S8':
            assert row['status'] == 'a block needs too much memory' and 'seconds' not in row
            continue
        assert row['status'] == 'ok' and row['seconds'] == pytest.approx(2e-3)
        # 16 decays a channel, token and direction; the loop takes 2 ms too
        share = 2 * 16 * 16 * 128 * (1 if row['kind'] == 'forward' else 2) / LOOP
        assert row['exp_share'] == pytest.approx(share)
        assert row['seconds_over_first'] == pytest.approx(1) == row.get('over_forward', 1)
        measured = row['execution'] == 'eager'
        assert ('peak_bytes' in row) == measured
        assert ('saved_bytes' in row) == (measured and row['kind'] != 'forward')
        if measured:
            assert row['peak_bytes'] == 1048
    # Two threads a channel have no kernel backwards: the rule's is taken there.
    none = (0, 0, False)
    assert {(4, 4, False), (2, 0, False), (4, 4, True), none} <= set(contenders.splits)
    assert contenders.splits[-1] == none
    text = (tmp_path / 'ops.md').read_text()
    for said in ('| µs |', '| of exp |', ', bfloat16, eager', ', bfloat16, graphs', 'H200, 132'):
        assert said in text
    assert '| 16 | forward | cuda S8 | a block needs too much memory |' in text


def test_every_pass_of_a_split_is_held_to_it(contenders: Gpu) -> None:
    work = scan_cases.make_work('cuda S4', Case('scan', 'nano', 1, 'float32', 8), CUDA)
    for call in (work.forward, lambda: work.call(PASSES[0]), lambda: work.call(PASSES[1])):
        call()
    assert contenders.splits == 3 * [(4, 4, False), (0, 0, False)]


def test_a_loop_that_does_not_compile_costs_its_share_alone(
    contenders: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing() -> None:
        raise RuntimeError('no compiler for the loop')

    monkeypatch.setattr(benchmark_ops, 'exp_loop', lambda device: (failing, LOOP))
    argv = ['--out', str(tmp_path), '--device', 'cuda', '--sizes', 'nano', '--lengths', '16']
    argv += ['--rounds', '2', '--seconds', '0', '--parts', 'scan', '--contenders', 'auto']
    assert benchmark_ops.main([*argv, '--no-memory']) == 0
    rows = json.loads((tmp_path / 'ops.json').read_text())['rows']
    assert [(row['status'], row['exp_share']) for row in rows] == 2 * [('ok', None)]


def test_times_end_with_the_kernels(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(device: Any = None) -> None:
        gpu.milliseconds += 5.0

    monkeypatch.setattr(torch.cuda, 'synchronize', wait)
    assert sample(lambda: gpu.run('a'), 5, CUDA) == pytest.approx((5 * 2e-3 + 5e-3) / 5)
    assert gpu.log == ['a'] * 5


def test_a_call_is_captured_once_and_then_replayed(gpu: Gpu) -> None:
    replay = capture(lambda: gpu.run('a'))
    assert gpu.log == ['wait', 'in Stream', 'a', 'a', 'a', 'out', 'wait', 'in Graph', 'a', 'out']
    replay()
    assert gpu.log[-1] == 'replay'


def test_no_room_for_a_graph_is_a_row(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(call: Any) -> None:
        raise torch.OutOfMemoryError('x')

    monkeypatch.setattr(harness, 'capture', full)
    args = SimpleNamespace(device=CUDA, rounds=1, seconds=0, no_memory=True)
    makers = {'a': lambda: lambda: gpu.run('a')}
    assert harness.contest(makers, 'graphs', args, {}, {}) == {'a': dict(status='OOM')}
    assert harness.contest(makers, 'eager', args, {}, {})['a']['status'] == 'ok'


def test_peak_memory_is_the_allocators(gpu: Gpu) -> None:
    assert peak_bytes(lambda: gpu.run('a'), CUDA) == 1048 and gpu.log == ['a']


def test_the_loop_counts_every_power(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []

    def jit(code: str) -> Any:
        compiled.append(code)
        return lambda source: source

    monkeypatch.setattr(torch.cuda.jiterator, '_create_jit_fn', jit)
    rand = torch.rand
    monkeypatch.setattr(ceilings.torch, 'rand', lambda size, device: rand(size))
    call, count = ceilings.exp_loop(CUDA)
    assert count == call().numel() * 256 and 'i < 256' in compiled[0]


def test_the_machine_is_described(gpu: Gpu) -> None:
    said = harness.circumstances(SimpleNamespace(device=CUDA, threads=3))['machine']
    assert said['gpu'] == 'H200, 132 multiprocessors' and said['threads'] == '3'


def test_the_commands_of_the_documents_are_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark_backbone = pytest.importorskip('benchmark_backbone')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.delenv('TORCH_CUDA_ARCH_LIST', raising=False)
    docs = (harness.ROOT / 'docs' / name for name in ('benchmarks/README.md', 'dev/gpu_runbook.md'))
    text = ''.join(file.read_text() for file in docs).replace('\\\n', ' ')
    ran = []
    for line in text.splitlines():
        if 'python ' not in line:
            continue
        here = line.replace('$OUT', str(tmp_path)).replace(' build/', f' {tmp_path}/')
        words = shlex.split(here, comments=True)
        if '$OPS' in words:
            argv = words[words.index('$OPS') + 1 :]
            assert benchmark_ops.parse_arguments(argv).lengths
        elif '$BACKBONE' in words:
            argv = words[words.index('$BACKBONE') + 1 :]
            assert benchmark_backbone.parse_arguments(argv).resolutions
        elif 'build_baseline.py' in line:  # what it shall unpack is not here
            assert build_baseline.main(words[2:]) == 1
            assert 'sdists/mamba_ssm-2.3.2.post1.tar.gz' in capsys.readouterr().err
        else:
            continue
        ran.append(line)
    os.environ.pop('TORCH_CUDA_ARCH_LIST', None)
    assert len(ran) == 10 + 12 + 3 + 1


def test_rounds_go_on_after_a_contender_ran_out_of_memory(gpu: Gpu) -> None:
    def greedy() -> None:
        raise torch.OutOfMemoryError('x')

    args = SimpleNamespace(device=CUDA, rounds=2, seconds=0)
    timings = interleave({'a': greedy, 'b': lambda: gpu.run('b')}, args)
    assert timings['a'] == dict(status='OOM')
    assert timings['b']['seconds'] == pytest.approx(2e-3)
