"""Being told to stop, from outside."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import noisy_task
import pytest
import torch
from forked import Script, start_ranks
from mmengine.config import Config
from mmengine.runner import Runner
from repository import TOOLS

from mmvim.checkpoints import load_checkpoint_file
from mmvim.engine import SaveOnSignalHook
from mmvim.engine.resume import save_on_signal

Train = Callable[..., Runner]


def start(cfg: dict[str, Any], folder: Path, *arguments: str) -> list[Script]:
    """``tools/train.py`` with this config in two processes."""
    config = folder / 'config.py'
    Config(cfg).dump(str(config))
    return start_ranks(2, TOOLS / 'train.py', config, *arguments, '--launcher', 'pytorch')


def end(processes: list[Script]) -> str:
    """What the two say until they end."""
    return ''.join(process.wait().stderr for process in processes)


def wait_for(path: Path, process: Script) -> None:
    """Until the file is there."""
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.printed('stderr')
        assert time.monotonic() < deadline, 'the run did not get under way'
        time.sleep(0.05)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group(
    train: Train,
    same_state: Callable[[Path, Path], bool],
    tmp_path: Path,
    number: int,
) -> None:
    """Workers get it as well, as with Ctrl-C: the run must not fail for their death."""
    cfg = noisy_task.config(tmp_path / 'w', False, 2)
    # Workers of a validation behind it, too: Python waits for them when it exits.
    cfg['val_dataloader'].update(num_workers=1, persistent_workers=True)
    Config({**cfg, 'custom_hooks': [dict(type='SlowHook')]}).dump(str(tmp_path / 'config.py'))
    process = Script(TOOLS / 'train.py', tmp_path / 'config.py')
    wait_for(tmp_path / 'w' / 'under_way_0', process)
    os.killpg(process.pid, number)
    done = process.wait()
    err = done.stderr
    assert done.returncode == 128 + number, err
    note = (tmp_path / 'w' / 'last_checkpoint').read_text()
    assert f'{signal.Signals(number).name}: saved {note} at iteration ' in err
    assert 'Traceback' not in err
    if number == signal.SIGTERM:
        train(noisy_task.config(tmp_path / 'whole', False))
        train(noisy_task.config(tmp_path / 'w', False), resume=note)
        assert same_state(tmp_path / 'whole' / 'iter_12.pth', tmp_path / 'w' / 'iter_12.pth')


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason='gloo is for machines without a GPU')
def test_one_of_two_processes_is_signalled(
    same_state: Callable[[Path, Path], bool], tmp_path: Path
) -> None:
    """Both save at the same iteration, each with its own random numbers, and go on with them."""
    gloo = dict(env_cfg=dict(dist_cfg=dict(backend='gloo')))
    whole = start(noisy_task.config(tmp_path / 'whole', False, **gloo), tmp_path)
    err = end(whole)
    assert [process.poll() for process in whole] == [0, 0], err

    cfg = noisy_task.config(tmp_path / 'w', False, 1, **gloo)
    broken = start({**cfg, 'custom_hooks': [dict(type='SlowHook')]}, tmp_path)
    wait_for(tmp_path / 'w' / 'under_way_1', broken[1])
    os.kill(broken[1].pid, signal.SIGTERM)
    err = end(broken)
    note = (tmp_path / 'w' / 'last_checkpoint').read_text()
    assert f'SIGTERM: saved {note} at iteration ' in err
    assert len(load_checkpoint_file(note)['random_states']) == 2

    resumed = start(cfg, tmp_path, '--resume')
    err = end(resumed)
    assert [process.poll() for process in resumed] == [0, 0], err
    assert same_state(tmp_path / 'whole' / 'iter_12.pth', tmp_path / 'w' / 'iter_12.pth')


def test_the_second_signal_does_what_it_always_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second later; before that it is the same one, handed on by make or a launcher."""
    seen = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    handlers = {n: signal.signal(n, lambda number, frame: seen.append(number)) for n in numbers}
    try:
        hook = SaveOnSignalHook()
        hook.before_train(SimpleNamespace(train_loop=None, val_loop=None))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert hook._agreed() == signal.SIGINT and not seen
        monkeypatch.setattr(save_on_signal, '_ONE_SIGNAL', 0.0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGINT)
        assert seen == [signal.SIGTERM, signal.SIGINT]
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_a_signal_that_is_handed_on_at_once_is_the_same_one(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Python handles it within the first call of the first one's handler."""
    hook, again = SaveOnSignalHook(), iter([signal.SIGTERM])

    def monotonic() -> float:
        for number in again:
            os.kill(os.getpid(), number)
        return time.monotonic()

    hook.before_train(SimpleNamespace(train_loop=None, val_loop=None))
    try:
        monkeypatch.setattr(save_on_signal, 'time', SimpleNamespace(monotonic=monotonic))
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        hook.release()
    assert hook._agreed() == signal.SIGTERM
    assert capfd.readouterr().err.count('SIGTERM: saving') == 1


def test_handlers_go_when_training_ends(train: Train, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    train(noisy_task.config(tmp_path, False))
    assert signal.getsignal(signal.SIGTERM) == before


def test_without_a_checkpoint_hook_nothing_is_saved(
    train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cfg = noisy_task.config(tmp_path, False)
    cfg['default_hooks'] = dict(checkpoint=None)
    interrupt = dict(type='InterruptHook', at=3, number=int(signal.SIGTERM))
    with pytest.raises(SystemExit):
        train({**cfg, 'custom_hooks': [interrupt]})
    assert 'SIGTERM: left without saving' in capfd.readouterr().err
    assert not list(tmp_path.glob('*.pth'))
