"""The wrapper that ends a tool with one sentence."""

import os
import sys
from collections.abc import Callable, Sequence

from mmvim.cli.known_failures import explain
from mmvim.errors import UserError, one_line

TRACEBACK_VARIABLE = 'MMVIM_TRACEBACK'
TRACEBACK_FLAG = '--traceback'
INTERRUPTED = 130  # what a shell reports for a process ended by SIGINT


def run_tool(main: Callable[[Sequence[str]], object], argv: Sequence[str] | None = None) -> int:
    """Run a tool's ``main`` and turn the failures we know into one line on stderr.

    Anything unknown keeps its traceback: a bug must not look like a user's mistake.

    Args:
        main: Takes the arguments without the program's name.
        argv: Defaults to those of the process.

    Returns:
        The exit code: 0, 1 (failed), 2 (bad arguments) or 130 (interrupted).
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    show_frames = TRACEBACK_FLAG in argv or os.environ.get(TRACEBACK_VARIABLE, '0') not in ('', '0')
    try:
        main(argv)
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        sentence = explain(error)
        if sentence is None or show_frames:
            raise
        print(f'error: {one_line(sentence)}', file=sys.stderr)
        return error.exit_code if isinstance(error, UserError) else UserError.exit_code
    return 0
