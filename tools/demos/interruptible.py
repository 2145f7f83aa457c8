"""Imported first: Ctrl-C and SIGTERM end a demo in one line, also while it imports the rest."""

import atexit
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

_demo = os.getpid()
_since = 0.0


def say() -> None:
    """Say once that the demo was interrupted."""
    global _since
    if not _since:
        _since = time.monotonic()
        print('interrupted: the same command goes on from there', file=sys.stderr, flush=True)


def _leave(number: int, frame: FrameType | None) -> None:
    say()
    os._exit(128 + number)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _demo:
        return  # a data worker, which ends with the demo
    first = not _since
    say()
    if first:
        raise SystemExit(128 + number)
    # make hands on what the whole process group has got already.
    if time.monotonic() - _since > 1:
        os._exit(128 + number)


def hold() -> None:
    """From here on what runs may clean up; another signal, a second later, ends it at once."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _interrupt)
    # Data workers end with the demo, which torch would call a failure of theirs.
    atexit.register(signal.signal, signal.SIGCHLD, signal.SIG_DFL)


def run_apart(command: Sequence[str], **options: Any) -> int:
    """Run a process that the terminal's signals do not reach, but that ends with this one.

    Args:
        command (Sequence[str]): Its words.
        **options (Any): As :class:`subprocess.Popen` takes them.

    Returns:
        int: Its exit code, once it has ended; after a signal it may take its time to save.
    """
    process = subprocess.Popen(command, start_new_session=True, **options)
    try:
        return process.wait()
    except SystemExit:
        process.terminate()
        process.wait()
        raise


for each in (signal.SIGINT, signal.SIGTERM):
    signal.signal(each, _leave)
