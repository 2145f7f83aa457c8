"""A runner that leaves the terminal to the run itself."""

import logging
from typing import Any

from mmengine.logging import MMLogger
from mmengine.runner import Runner


class _WarningsAlone(logging.Filter):
    """Lets warnings pass alone until ``begun``.

    Handlers live as long as the process. They must not keep the runner alive, whose process group
    has to end before Python does.
    """

    begun = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the terminal shows a record."""
        return self.begun or record.levelno >= logging.WARNING


class QuietRunner(Runner):
    """Runner whose terminal shows only warnings while it is built.

    The environment, the config, the hooks and the options of every parameter, some 800 lines, go
    to the log file alone, whose name is printed.
    """

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build mmengine's logger, its terminal quiet so far."""
        logger = super().build_logger(*args, **kwargs)
        self._terminal = _WarningsAlone()
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                print(f'environment, config and log: {handler.baseFilename}', flush=True)
            else:
                handler.addFilter(self._terminal)
        return logger

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """Call all hooks; with the first, ``before_run``, everything is built."""
        self._terminal.begun = True
        super().call_hook(fn_name, **kwargs)
