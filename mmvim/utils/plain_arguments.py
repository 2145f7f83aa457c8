"""Command lines of the tools that take no config."""

import os
from argparse import ArgumentParser
from typing import NoReturn

from mmvim.utils.errors import UsageError
from mmvim.utils.run_tool import TRACEBACK_FLAG, TRACEBACK_VARIABLE


class PlainParser(ArgumentParser):
    """A parser that complains by ``UsageError``, with ``--traceback`` as every tool has it.

    Args:
        description: What the tool does.
    """

    def __init__(self, description: str) -> None:
        super().__init__(description=description, allow_abbrev=False)
        self.add_argument(
            TRACEBACK_FLAG,
            action='store_true',
            help=f'show the frames of an error (so does {TRACEBACK_VARIABLE}=1)',
        )

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print and exit with.

        Raises:
            UsageError: Always.
        """
        raise UsageError(f'{message} (see {os.path.basename(self.prog)} --help)')
