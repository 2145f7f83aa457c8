"""Which form of a Triton kernel is launched: the table, and what is measured in place of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from mmvim_ops_by_name import bidirectional
from torch import Tensor

import mmvim_ops
from mmvim_ops.backends import triton
from mmvim_ops.backends.triton import TRITON
from mmvim_ops.triton_kernels import tuning
from mmvim_ops.triton_kernels.tuning import Launch, Work

Inputs = Callable[..., dict[str, Tensor]]

DEVICE = torch.device('cuda', 0)
WORK = Work('forward', torch.bfloat16, 16, 12, 3_000_000)


@pytest.fixture
def tunes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """MMVIM_TRITON_TUNE=1, on a device of which nothing is known yet, with a clock."""
    pytest.importorskip('triton')
    monkeypatch.setattr(tuning, 'TUNES', True)
    monkeypatch.setattr(tuning, '_measured', {})
    monkeypatch.setattr(tuning, '_name', str)
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: False)

    def use(clock: Callable[[Callable[[], object]], float]) -> None:
        monkeypatch.setattr('triton.testing.do_bench', lambda run, return_mode: clock(run))

    return use


def test_values_of_the_variable() -> None:
    """Those that switch it on and off; with any other no kernel runs, and the reason says why."""
    pytest.importorskip('triton')
    code = (
        'from mmvim_ops.backends.triton import TRITON, tuning;'
        'import torch;'
        "print(tuning.TUNES, TRITON.problem(torch.device('cuda'), torch.float32))"
    )
    for value, said in (
        ('', 'False None'),
        ('0', 'False None'),
        ('1', 'True None'),
        ('false', 'False MMVIM_TRITON_TUNE=false is not valid: set 1 to .*, 0 or nothing to '),
    ):
        others = {name: set_to for name, set_to in os.environ.items() if name != 'TRITON_INTERPRET'}
        run = subprocess.run(
            [sys.executable, '-c', code],
            env=others | {'MMVIM_TRITON_TUNE': value},
            capture_output=True,
            text=True,
            check=True,
        )
        assert re.match(said, run.stdout), (value, run.stdout)


@pytest.mark.parametrize('kernel', ['forward', 'backward'])
def test_the_table_has_a_candidate_for_everything(kernel: str) -> None:
    dtypes = torch.float32, torch.bfloat16, torch.float16
    for states, dtype in product(range(1, 33), dtypes):
        work = Work(kernel, dtype, states, 12, 3_000_000)
        assert tuning.default(work) in tuning.candidates(work)


def test_the_table_knows_states_and_bytes() -> None:
    """A thread has fewer channels where each has more states, or longer numbers."""
    for changes, channels in (
        ({}, 2),
        (dict(states=32), 1),
        (dict(states=1), 4),
        (dict(states=1, dtype=torch.float32), 2),
    ):
        assert tuning.default(WORK._replace(**changes)) == Launch(channels)
    backward = WORK._replace(kernel='backward')
    held = [tuning.default(backward._replace(states=N)).held for N in (1, 16, 32)]
    assert held == [4, 2, 1]


def test_the_fastest_is_taken_and_the_earlier_of_equals() -> None:
    launches = [Launch(1), Launch(2), Launch(4)]
    times = dict(zip(launches, (3.0, 2.0, 2.0)))
    assert tuning.fastest(launches, times.__getitem__) == (Launch(2), times)


def test_nothing_is_measured_unasked(monkeypatch: pytest.MonkeyPatch, tunes: Any) -> None:
    """Nor while a graph is captured, nor for no numbers at all."""
    tunes(lambda run: pytest.fail('measured'))
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: True)
    assert tuning.launch(WORK, DEVICE, print) == Launch(2)
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: False)
    assert tuning.launch(WORK._replace(size=0), DEVICE, print) == Launch(2)
    monkeypatch.setattr(tuning, 'TUNES', False)
    assert tuning.launch(WORK, DEVICE, print) == Launch(2)


def test_a_kind_of_call_is_measured_once(tunes: Any, caplog: pytest.LogCaptureFixture) -> None:
    """All candidates, by what a trial of each takes; the log has all that a report needs."""
    tried: list[Launch] = []

    def clock(run: Callable[[], object]) -> float:
        run()
        return 0.5 if tried[-1] == Launch(4, 4) else 1.25

    tunes(clock)
    for size in (WORK.size, WORK.size + 1):  # both up to 2^22
        assert tuning.launch(WORK._replace(size=size), DEVICE, tried.append) == Launch(4, 4)
    assert tried == tuning.candidates(WORK)
    (line,) = caplog.messages
    for part in ('cuda:0', 'torch.bfloat16', 'states=16', 'rank=12', '(4, 4, 1) 0.500', '1.250'):
        assert part in line
    tuning.launch(WORK._replace(states=8), DEVICE, tried.append)
    assert len(caplog.messages) == 2


def test_the_interpreter_has_nothing_to_measure(
    monkeypatch: pytest.MonkeyPatch, scan_inputs: Inputs
) -> None:
    pytest.importorskip('triton')  # or that it is absent is said first
    monkeypatch.setattr(triton, 'INTERPRETED', True)
    monkeypatch.setattr(tuning, 'TUNES', True)
    with pytest.raises(
        RuntimeError, match=r'MMVIM_TRITON_TUNE=1 measures .* on a GPU.*; unset one'
    ):
        mmvim_ops.selective_scan(**scan_inputs(dtype=torch.float32), backend='triton')
    assert 'unset one' in (TRITON.unavailable() or '')


@pytest.mark.parametrize(
    ('forward', 'backward'),
    [(Launch(1), Launch(held=1)), (Launch(2, 4), Launch(held=4)), (Launch(4), Launch(held=2))],
)
def test_every_form_gives_the_same(
    forward: Launch,
    backward: Launch,
    bidirectional_inputs: Inputs,
    compare_triton: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forms = dict(forward=forward, backward=backward)
    monkeypatch.setattr(tuning, 'default', lambda work: forms[work.kernel])
    monkeypatch.setattr(TRITON, 'chunk', 3)
    compare_triton(bidirectional, bidirectional_inputs(B=1, L=5, E=35, N=2, dtype=torch.float32))


def test_trials_leave_no_trace(
    bidirectional_inputs: Inputs, triton_device: str, tunes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the second scan adds to what the first has left in its output, too."""
    made = bidirectional_inputs(B=1, L=3, E=3, N=2, dtype=torch.float32)
    leaves = [tensor.to(triton_device).requires_grad_() for tensor in made.values()]

    def run() -> list[Tensor]:
        out, _ = TRITON.family.bidirectional_selective_scan(*leaves, 0.5, True, 2)
        return [out, *torch.autograd.grad(out.sum(), leaves)]

    monkeypatch.setattr(tuning, 'TUNES', False)
    wanted = run()
    monkeypatch.setattr(tuning, 'TUNES', True)
    times = iter(range(9, 0, -1))  # whatever comes later is faster

    def clock(trial: Callable[[], object]) -> float:
        trial()
        return next(times)

    tunes(clock)
    found = run()
    assert {work.kernel for _, work in tuning._measured} == {'forward', 'backward'}
    for got, want in zip(found, wanted):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
