"""Begin and end of every tool."""

import logging
import os
import sys
from collections.abc import Callable, Sequence

from mmvim.errors import UserError, one_line

TRACEBACK_VARIABLE = 'MMVIM_TRACEBACK'
TRACEBACK_FLAG = '--traceback'
_UNREGISTERED = 'registry. Please check whether the value of'
INTERRUPTED = 130  # what a shell reports for a process ended by SIGINT


def run_tool(main: Callable[[Sequence[str]], object], argv: Sequence[str] | None = None) -> int:
    """Run a tool's ``main``; a user error and one of the system are one line on stderr.

    So is mmengine's message about a ``type`` of the config that is registered nowhere.
    Anything else keeps its traceback: a bug must not look like a user's mistake.

    Args:
        main (Callable): Takes the arguments without the program's name.
        argv (Sequence[str], optional): Defaults to the arguments of the process.

    Returns:
        int: The exit code: 0, 1 (failed), 2 (bad arguments) or 130 (interrupted).
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    show_frames = TRACEBACK_FLAG in argv or os.environ.get(TRACEBACK_VARIABLE, '0') not in ('', '0')
    logging.Handler.handleError = _report_lost_log  # type: ignore[method-assign,assignment]
    try:
        main(argv)
        sys.stdout.flush()  # a full disk may show only now
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return INTERRUPTED
    except (OSError, UserError, KeyError) as error:
        if show_frames or (isinstance(error, KeyError) and _UNREGISTERED not in str(error)):
            raise
        _give_up_stdout()
        print(f'error: {sentence(error)}', file=sys.stderr)
        return error.exit_code if isinstance(error, UserError) else UserError.exit_code
    return 0


def sentence(error: BaseException) -> str:
    """Message of a user error or of the system, in one line.

    A data worker hands an error on as the text of its traceback, which ends with the type and the
    sentence.
    """
    if isinstance(error, OSError) and error.filename is not None:
        return f'{error.filename}: {error.strerror}'
    text = str(error.args[0]) if isinstance(error, KeyError) else str(error)
    return one_line(text.rpartition(f'{type(error).__name__}: ')[2])


def _give_up_stdout() -> None:
    """Let what stdout cannot take go, or Python tries once more when it ends, and complains."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


_stock_report = logging.Handler.handleError


def _report_lost_log(handler: logging.Handler, record: logging.LogRecord) -> None:
    """Say once that a log cannot be written, where logging prints a traceback for each line."""
    error = sys.exc_info()[1]
    if not isinstance(error, OSError):
        _stock_report(handler, record)
    elif not hasattr(handler, 'lost'):
        handler.lost = True  # type: ignore[attr-defined]
        name = getattr(handler, 'baseFilename', 'the log')
        print(f'warning: {name} cannot be written ({error.strerror})', file=sys.stderr)
