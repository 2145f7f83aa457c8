"""Command-line arguments shared by the tools."""

import ast
import os
from argparse import Action, ArgumentParser, Namespace
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
from mmengine.config import DictAction
from mmengine.device import get_device

from mmvim.cli.run_tool import TRACEBACK_FLAG, TRACEBACK_VARIABLE
from mmvim.errors import UsageError, UserError, first_line

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')


class _ConfigOptions(Action):
    """``KEY=VALUE`` pairs, collected in a dict by dotted key."""

    def __call__(
        self,
        parser: ArgumentParser,
        namespace: Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        options = dict(getattr(namespace, self.dest) or {})
        for pair in values or ():
            key, equals, value = pair.partition('=')
            try:
                if not equals:
                    raise ValueError(f'{pair} has no =')
                options[key] = parse_value(value)
            except (ValueError, RecursionError) as error:
                parser.error(
                    f'{option_string} takes KEY=VALUE pairs ({error}; positional arguments go '
                    f'before {option_string})'
                )
        setattr(namespace, self.dest, options)


def parse_value(text: str) -> Any:
    """The value of a ``KEY=VALUE`` pair.

    What stands in quotes, brackets or braces is a literal of Python where it can be one. Else, as
    in mmengine, ``a,b`` and ``[a,b]`` are lists, ``(a,b)`` is a tuple, and what reads
    as a number, a boolean or None is one. The rest is text, blanks included.

    Raises:
        ValueError: If brackets or braces do not match, or a dict is no literal.
    """
    text = text.strip()
    ends = text[:1] + text[-1:]
    if ends in ('""', "''", '[]', '()', '{}'):
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            value = ast.literal_eval(text)
            return list(value) if isinstance(value, tuple) and ends != '()' else value
    if ends == '{}' and ':' in text:
        raise ValueError(f'{text} is no dict of Python: quote its strings')
    parts = _split(text[1:-1]) if ends in ('[]', '()') else None
    if parts is None:
        parts, ends = _split(text), ''
        if parts is None and ',' in text:
            raise ValueError(f'the brackets of {text} do not match')
        if parts is None or len(parts) == 1:
            return DictAction._parse_int_float_bool(text)
    values = [parse_value(part) for part in parts if part.strip()]
    return tuple(values) if ends == '()' else values


def _split(text: str) -> list[str] | None:
    """What stands between the commas outside brackets; None if brackets do not match."""
    closing = {'(': ')', '[': ']', '{': '}'}
    parts = ['']
    expected: list[str] = []
    for char in text:
        if char == ',' and not expected:
            parts.append('')
            continue
        parts[-1] += char
        if char in closing:
            expected.append(closing[char])
        elif char in closing.values() and (not expected or expected.pop() != char):
            return None
    return None if expected else parts


class PlainParser(ArgumentParser):
    """A parser that complains by ``UsageError``, with ``--traceback`` as every tool has it.

    Args:
        description (str): What the tool does.
        epilog (str, optional): What ``--help`` ends with. Defaults to None.
    """

    def __init__(self, description: str, epilog: str | None = None) -> None:
        super().__init__(description=description, epilog=epilog, allow_abbrev=False)
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


class ToolParser(PlainParser):
    """A parser with the arguments of every tool that takes a config.

    Args:
        description (str): What the tool does.
    """

    def __init__(self, description: str) -> None:
        super().__init__(
            description, 'A config is a Python file and is run as such: use only those you trust.'
        )
        self.add_argument('config', help='config file (Python that is run: only a trusted one)')
        self.add_argument(
            '--cfg-options',
            nargs='+',
            action=_ConfigOptions,
            metavar='KEY=VALUE',
            help='change config entries: train_dataloader.batch_size=4, '
            'param_scheduler.0.end=100, key="[a,b]" for a list; an unknown key is an error',
        )

    def add_checkpoint(self) -> None:
        """``checkpoint``, a positional argument."""
        self.add_argument('checkpoint', help='weights of exactly this model: a file or an URL')

    def add_out(self, what: str) -> None:
        """``--out``, the folder for ``what``."""
        self.add_argument(
            '--out',
            required=True,
            type=lambda given: Path(given).expanduser(),
            metavar='DIR',
            help=f'folder for {what}',
        )

    def add_pictures(self) -> None:
        """``images`` and ``--device`` of the tools that look at pictures."""
        self.add_argument('images', metavar='image', help='a picture, or a folder of pictures')
        self.add_argument(
            '--device', type=usable_device, default=get_device(), help='default: %(default)s'
        )

    def add_work_dir(self, what: str) -> None:
        """``--work-dir``; ``what`` is put there."""
        self.add_argument(
            '--work-dir',
            help=f'folder for {what} (default: work_dir of the config, '
            'else ./work_dirs/<name of the config>)',
        )

    def add_launcher(self) -> None:
        """``--launcher`` and the local rank that torch's launchers pass."""
        self.add_argument(
            '--launcher',
            choices=LAUNCHERS,
            default='none',
            help='who started the processes of a distributed run (default: none)',
        )
        self.add_argument(
            '--local_rank', '--local-rank', type=int, default=0, help='set by torch.distributed'
        )


def usable_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        UserError: If torch knows no such device or the machine has none.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f'--device {name} cannot be used ({first_line(error)}); '
            f'this machine offers {get_device()}'
        ) from error
    return device
