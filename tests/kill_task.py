"""A hook that kills its own process with SIGKILL, as the environment says."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

VARIABLE = 'MMVIM_TEST_KILL'


def kill() -> None:
    """As ``kill -9``: nothing of this process runs any more."""
    os.kill(os.getpid(), signal.SIGKILL)


@HOOKS.register_module(force=True)
class KillHook(Hook):
    """Kills at a moment of the run; does nothing where ``MMVIM_TEST_KILL`` is not set.

    The variable holds JSON with ``at``, the iteration from which on to kill, and ``where``:

    * ``'delay'``: ``seconds`` later, whatever goes on then;
    * ``'write'``: when half of a checkpoint is written;
    * ``'rename'``: when a checkpoint was given its name and is not noted yet;
    * ``'note'``: when the note of the last checkpoint is half written;
    * ``'removal'``: before an old checkpoint is removed.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self.plan = json.loads(os.environ.get(VARIABLE, '{}'))

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if not self.plan or runner.iter < self.plan['at']:
            return
        plan, self.plan = self.plan, {}
        getattr(self, f'_kill_at_{plan["where"]}')(plan)

    def _kill_at_delay(self, plan: dict[str, Any]) -> None:
        def wait() -> None:
            time.sleep(plan['seconds'])
            kill()

        threading.Thread(target=wait, daemon=True).start()

    def _kill_half_way(self, written: str) -> None:
        fsync = os.fsync

        def synced(descriptor: int) -> None:
            name = Path(os.readlink(f'/proc/self/fd/{descriptor}')).name
            if name.startswith(f'.{written}'):
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
                kill()
            fsync(descriptor)

        os.fsync = synced

    def _kill_at_write(self, plan: dict[str, Any]) -> None:
        self._kill_half_way('iter_')

    def _kill_at_note(self, plan: dict[str, Any]) -> None:
        self._kill_half_way('last_checkpoint')

    def _kill_at_rename(self, plan: dict[str, Any]) -> None:
        replace = os.replace

        def replaced(source: Any, target: Any) -> None:
            replace(source, target)
            if Path(target).name.startswith('iter_'):
                kill()

        os.replace = replaced  # type: ignore[assignment]

    def _kill_at_removal(self, plan: dict[str, Any]) -> None:
        os.remove = lambda path: kill()  # type: ignore[assignment]
