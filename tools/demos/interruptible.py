"""Imported first: Ctrl-C and SIGTERM end a demo in one line, also while it imports the rest."""

import os
import signal
import sys
import time
from types import FrameType

_since = 0.0


def _leave(number: int, frame: FrameType | None) -> None:
    print('interrupted', file=sys.stderr, flush=True)
    os._exit(128 + number)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _since
    # make hands on what the whole process group has got already.
    if time.monotonic() - _since > 1:
        _since = time.monotonic()
        raise KeyboardInterrupt


def hold() -> None:
    """From here on both raise KeyboardInterrupt, so that what runs can clean up."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _interrupt)


for each in (signal.SIGINT, signal.SIGTERM):
    signal.signal(each, _leave)
