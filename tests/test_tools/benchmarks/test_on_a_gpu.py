"""The branches that only a GPU takes, with stand-ins for torch.cuda: no GPU has to be there."""

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import benchmark_ops
import pytest
import torch
from benchmarking import (
    arguments,
    build_baseline,
    ceilings,
    machine,
    ops_report,
    scan_cases,
    timing,
)
from benchmarking.ceilings import ExpLoop
from benchmarking.memory import peak_bytes
from benchmarking.scan_cases import Case, Work
from benchmarking.timing import Effort, capture, sample

from mmvim_ops import BackendStatus, loading

CPU, CUDA = torch.device('cpu'), torch.device('cuda')
MEGAHERTZ = 1500.0


class Gpu:
    """What happened on it, in order, and what it would say."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.milliseconds = 0.0
        self.splits: list[tuple[int, int]] = []

    def run(self, what: str) -> None:
        """A kernel that takes 2 ms."""
        self.log.append(what)
        self.milliseconds += 2.0


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = gpu.milliseconds

        def elapsed_time(self, end: Any) -> float:
            return float(end.at - self.at)

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
        Event=Event,
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
        set_device=lambda device: gpu.log.append(f'set {device}'),
    )
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(ceilings, 'sm_clocks', lambda device: (MEGAHERTZ, 1980.0))
    monkeypatch.setattr(machine, 'sm_clocks', lambda device: (345.0, 1980.0))
    loop = ExpLoop('ex2 loop', lambda: gpu.run('loop'), 1000)
    for module in (ceilings, benchmark_ops):
        monkeypatch.setattr(module, 'exp_loops', lambda device: [loop])
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

        return replace(on_cpu, run=run, split=scan_cases.SPLIT_CONTENDERS.get(name, 0))

    every = {name: BackendStatus(True, '') for name in ('cuda', 'chunked')}
    monkeypatch.setattr(scan_cases, 'available_backends', lambda: every)
    monkeypatch.setattr(benchmark_ops, 'make_work', make_work)
    monkeypatch.setattr(arguments, 'checked_device', lambda name: CUDA)
    monkeypatch.setattr(benchmark_ops, 'copy_bandwidth', lambda device, effort: 4e12)
    monkeypatch.setattr(
        loading, 'force_splits', lambda f, b: gpu.splits.append((f, b)), raising=False
    )
    monkeypatch.setattr(ceilings, '_SECONDS_OF_LOAD', 0.0)
    return gpu


@pytest.mark.usefixtures('published_kernels')
def test_a_whole_run(contenders: Gpu, tmp_path: Path) -> None:
    argv = ['--out', str(tmp_path), '--device', 'cuda', '--sizes', 'nano', '--lengths', '16']
    argv += ['--rounds', '2', '--seconds', '0', '--dtypes', 'bfloat16', '--parts', 'inner']
    argv += ['--contenders', 'auto', 'chunked', 'published', '--splits', '2', '4', '8']
    assert benchmark_ops.main([*argv, '--execution', 'eager', 'graphs']) == 0
    result = json.loads((tmp_path / 'ops.json').read_text())
    names = ['auto', 'chunked', 'published', 'cuda S2', 'cuda S4', 'cuda S8']
    passes = benchmark_ops.PASSES
    assert [(r['execution'], r['kind'], r['contender']) for r in result['rows']] == [
        (how, kind, name) for how in ('eager', 'graphs') for kind in passes for name in names
    ]
    (ceiling,) = result['ceilings']
    assert ceiling['mufu_giga_per_second'] == pytest.approx(132 * 16 * MEGAHERTZ / 1e3)
    for row in result['rows']:
        if row['contender'] == 'cuda S8':
            assert row['status'] == 'a block needs too much memory' and 'over_ours' not in row
            continue
        assert row['status'] == 'ok' and row['median_seconds'] == pytest.approx(2e-3)
        # 16 decays and two results for softplus a direction, two for its convolution; the gate
        special = 16 * 128 * (2 * (16 + 2 + 2) + 2) * (1 if row['kind'] == 'forward' else 2)
        share = special / 2e-3 / (132 * 16 * MEGAHERTZ * 1e6)
        assert row['exp_share'] == pytest.approx(share)
        assert row['over_ours'] == row['over_forward'] == pytest.approx(1)
        measured = row['execution'] == 'eager'
        assert ('peak_bytes' in row) == ('saved_bytes' in row) == measured
        if measured:
            assert row['peak_bytes'] == 1048
    # Two threads a channel have no kernel backwards: the rule's is taken there.
    assert {(4, 4), (2, 0), (0, 0)} <= set(contenders.splits)
    assert contenders.splits[-1] == (0, 0)
    text = (tmp_path / 'ops.md').read_text()
    for said in ('| µs |', '| of MUFU |', ', bfloat16, eager', ', bfloat16, graphs', 'H200, 132'):
        assert said in text
    assert 'special-function units 3170 G results/s at 1500 MHz' in text
    assert '| 16 | forward | cuda S8 | a block needs too much memory |' in text


def test_without_the_clock_the_loop_is_the_ceiling(
    contenders: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ceilings, 'sm_clocks', lambda device: None)
    argv = ['--out', str(tmp_path), '--device', 'cuda', '--sizes', 'nano', '--lengths', '16']
    argv += ['--rounds', '2', '--seconds', '0', '--parts', 'scan', '--contenders', 'auto']
    assert benchmark_ops.main([*argv, '--no-memory']) == 0
    result = json.loads((tmp_path / 'ops.json').read_text())
    for row in result['rows']:
        assert row['exp_share'] == pytest.approx(row['gigaexp_per_second'] / (1000 / 2e-3 / 1e9))
    text = ops_report.to_markdown(result)
    assert '| of exp |' in text and 'what the machine can do (ex2 loop)' in text


def test_times_are_those_between_two_events(gpu: Gpu) -> None:
    assert sample(lambda: gpu.run('a'), 5, CUDA) == pytest.approx(2e-3)
    assert gpu.log == ['a'] * 5


def test_a_call_is_captured_once_and_then_replayed(gpu: Gpu) -> None:
    replay = capture(lambda: gpu.run('a'))
    assert gpu.log == ['wait', 'in Stream', 'a', 'a', 'a', 'out', 'wait', 'in Graph', 'a', 'out']
    replay()
    assert gpu.log[-1] == 'replay'


def test_no_room_for_a_graph_is_a_row(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(call: Any) -> None:
        raise torch.OutOfMemoryError('x')

    monkeypatch.setattr(benchmark_ops, 'capture', full)
    work = scan_cases.make_work('chunked', Case('scan', 'nano', 1, 8, 'float32'), CPU)
    calls, failed = benchmark_ops.ready_calls({'a': work}, 'graphs', 'forward', CUDA)
    assert calls == {} and failed == {'a': timing.OOM}
    calls, failed = benchmark_ops.ready_calls({'a': work}, 'eager', 'forward', CUDA)
    assert calls == {'a': work.forward} and failed == {}


def test_peak_memory_is_the_allocators(gpu: Gpu) -> None:
    assert peak_bytes(lambda: gpu.run('a'), CUDA) == 1048 and gpu.log == ['a']


def test_the_clock_is_read_while_the_gpu_is_busy(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, '_SECONDS_OF_LOAD', 0.05)

    def clocks(device: torch.device) -> tuple[float, float]:
        before = len(gpu.log)
        while len(gpu.log) == before:  # the load goes on beside the question
            pass
        return float(before > 0) * MEGAHERTZ, 1980.0

    monkeypatch.setattr(ceilings, 'sm_clocks', clocks)
    assert ceilings.clock_under_load(CUDA) == MEGAHERTZ


def test_the_driver_is_asked_for_one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = tmp_path / 'asked'
    program = tmp_path / 'nvidia-smi'
    program.write_text(
        f'#!{sys.executable}\nimport sys\nopen({str(asked)!r}, "w").write(str(sys.argv))\n'
        'print("1755, 1980")\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.setattr(
        torch.cuda, 'get_device_properties', lambda device: SimpleNamespace(uuid='12-34')
    )
    assert ceilings.sm_clocks(CUDA) == (1755.0, 1980.0)
    assert '--id=GPU-12-34' in asked.read_text()
    program.write_text('#!/bin/sh\necho "[N/A], [N/A]"\n')
    assert ceilings.sm_clocks(CUDA) is None
    program.unlink()
    assert ceilings.sm_clocks(CUDA) is None


def test_without_a_compiler_torch_exp2_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip('there is a compiler for the GPU here')
    loop = ceilings._cuda_exp_loop(torch.rand(8))
    assert (loop.name, loop.count) == ('torch.exp2', 8)
    loop.call()
    assert 'torch.exp2 in place of a loop in registers' in capsys.readouterr().err


def test_a_numbered_gpu_becomes_the_current_one(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments.torch, 'empty', lambda size, device: None)
    assert arguments.checked_device('cuda:1') == torch.device('cuda:1')
    assert arguments.checked_device('cuda') == CUDA
    assert gpu.log == ['set cuda:1']


def test_the_machine_is_described(gpu: Gpu) -> None:
    said = machine.describe_machine(CUDA)
    assert said['gpu'] == 'H200, 132 multiprocessors, 141 GiB'
    assert said['gpu clock'] == '345 MHz before the run, at most 1980'


def test_the_commands_of_the_documents_are_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark_backbone = pytest.importorskip('benchmark_backbone')
    pytest.importorskip('mmpretrain')
    monkeypatch.setattr(arguments, 'checked_device', torch.device)
    monkeypatch.setattr(benchmark_ops, 'contender_problem', lambda *_: None)
    monkeypatch.delenv('TORCH_CUDA_ARCH_LIST', raising=False)
    docs = (machine.ROOT / 'docs' / name for name in ('benchmarks/README.md', 'dev/gpu_runbook.md'))
    text = ''.join(file.read_text() for file in docs).replace('\\\n', ' ')
    ran = []
    for line in text.splitlines():
        if 'python ' not in line:
            continue
        here = line.replace('$OUT', str(tmp_path)).replace(' build/', f' {tmp_path}/')
        words = shlex.split(here, comments=True)
        if '$OPS' in words:
            argv = words[words.index('$OPS') + 1 :]
            args = benchmark_ops.parse_arguments(argv)
            assert list(benchmark_ops.all_cases(args))
        elif '$BACKBONE' in words:
            argv = words[words.index('$BACKBONE') + 1 :]
            if '--with-neck' in argv:
                pytest.importorskip('mmseg')
            assert list(benchmark_backbone.all_settings(benchmark_backbone.parse_arguments(argv)))
        elif 'build_baseline.py' in line:  # what it shall unpack is not here
            assert build_baseline.main(words[2:]) == 1
            assert 'sdists/mamba_ssm-2.3.2.post1.tar.gz is neither' in capsys.readouterr().err
        else:
            continue
        ran.append(line)
    os.environ.pop('TORCH_CUDA_ARCH_LIST', None)
    assert len(ran) == 9 + 5 + 3 + 1


def test_rounds_go_on_after_a_contender_ran_out_of_memory(gpu: Gpu) -> None:
    def greedy() -> None:
        raise torch.OutOfMemoryError('x')

    effort = Effort(rounds=2, seconds=0)
    timings = timing.interleave({'a': greedy, 'b': lambda: gpu.run('b')}, CUDA, effort)
    assert timings['a'] == timing.OOM
    assert isinstance(timings['b'], timing.Timing) and timings['b'].median == pytest.approx(2e-3)
