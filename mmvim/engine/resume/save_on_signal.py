"""Save a checkpoint before a signal ends the run."""

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, NoReturn

import torch
from mmengine.dist import all_reduce, get_world_size, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner

from mmvim.engine.resume.atomic_checkpoint import AtomicCheckpointHook
from mmvim.registry import HOOKS

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Seconds within which signals count as one: make and launchers hand on what their group got too.
_ONE_SIGNAL = 1.0
# Seconds that a data worker goes on after SIGTERM: enough to end an iteration and to save.
_GRACE = 60


@HOOKS.register_module()
class SaveOnSignalHook(Hook):
    """Saves a checkpoint and exits at the end of the iteration in which a signal arrives.

    The signals are SIGTERM and SIGINT (Ctrl-C). The exit code is what a shell gives for them: 143
    and 130. Another signal, a second later, exits at once. With several processes one signal to any
    of them is enough: all save at the same iteration, which takes one small reduction per iteration
    to agree on. A signal during validation ends it at once (with several processes when it is
    over).

    :class:`AtomicCheckpointHook` saves; a run without one exits without saving.
    """

    # After everything that belongs to the iteration, CheckpointHook (VERY_LOW) included.
    priority = 'LOWEST'

    def __init__(self) -> None:
        self._received = 0
        self._since = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def before_train(self, runner: Runner) -> None:
        """Handle signals from here on; data workers ignore them."""
        for loop in (runner.train_loop, runner.val_loop):
            loader = getattr(loop, 'dataloader', None)
            if loader is not None:
                loader.worker_init_fn = partial(_shield_worker, inner=loader.worker_init_fn)
        atexit.unregister(_kill_workers)
        atexit.register(_kill_workers)
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may listen
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._receive)

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Save and leave if told to."""
        if self._agreed():
            # The loop counts this iteration only after its hooks.
            self._leave(runner, runner.iter + 1)

    def after_val_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Save and leave if told to; several processes may have shares of different lengths."""
        if get_world_size() == 1 and self._received:
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):  # validation runs on the averaged weights
                    hook.after_val_epoch(runner)
            self._leave(runner, runner.iter)

    def after_val_epoch(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Save and leave if told to."""
        if self._agreed():
            self._leave(runner, runner.iter)

    def after_train(self, runner: Runner) -> None:
        """Handle signals no longer."""
        self.release()

    def release(self) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        # Python may handle the next signal within any call: none lies between question and answer.
        if not self._received:
            self._received, self._since = number, now
            if is_main_process():
                name = signal.Signals(number).name
                # Not print: the signal may have come in the middle of one.
                os.write(2, f'{name}: saving after this iteration, once more leaves now\n'.encode())
        elif now - self._since > _ONE_SIGNAL:
            self.release()
            os.kill(os.getpid(), number)

    def _agreed(self) -> int:
        """The signal that any process has received, 0 for none."""
        if get_world_size() == 1:
            return self._received
        highest = torch.tensor(self._received)
        all_reduce(highest, op='max')
        return int(highest)

    def _leave(self, runner: Runner, iteration: int) -> NoReturn:
        number = self._agreed()
        hooks = [hook for hook in runner.hooks if isinstance(hook, AtomicCheckpointHook)]
        what = 'left without saving, no AtomicCheckpointHook is there to do it'
        if hooks:
            if hooks[0].saved_iter == iteration:
                path = hooks[0].last_ckpt
            else:
                path = hooks[0].save_interrupted(runner, iteration)
            what = f'saved {path} at iteration {iteration}; the same command with --resume goes on'
        if is_main_process():
            print(f'{signal.Signals(number).name}: {what}', file=sys.stderr)
        self.release()
        raise SystemExit(128 + number)


def _shield_worker(worker_id: int, inner: Callable[[int], None] | None) -> None:
    """Keep a signal meant for the run from its data workers.

    Ctrl-C reaches every process of a group, and batch systems signal every process of a job:
    without its workers the run would fail before its iteration ends.
    """
    if hasattr(os, 'setpgid'):
        os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)
    if inner is not None:
        inner(worker_id)


def _end_later(number: int, frame: FrameType | None) -> None:
    """Let a second SIGTERM end the worker, and time if there is none."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_GRACE)


def _kill_workers() -> None:
    """End what workers there are when Python exits, which sends them SIGTERM and waits."""
    if hasattr(signal, 'SIGCHLD'):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would call it a failure
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
