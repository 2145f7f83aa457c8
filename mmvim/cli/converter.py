"""What the two converters share: their command line, reading, the table, writing."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from mmvim.checkpoints.conversion import Conversion
from mmvim.checkpoints.files import (
    SUFFIXES,
    WeightFile,
    pack_weights,
    read_weight_file,
    refuse_existing,
    write_hashed,
)
from mmvim.checkpoints.vim import CLS_TOKENS
from mmvim.cli.arguments import PlainParser
from mmvim.errors import UsageError

_WIDTH = 170  # the keys of both sides beside each other


class ConverterParser(PlainParser):
    """The arguments of both converters.

    Args:
        description: What the tool does.
    """

    def __init__(self, description: str) -> None:
        super().__init__(description)
        kinds = ' or '.join(SUFFIXES)
        self.add_argument('source', help=f'checkpoint to convert: a {kinds} file or an URL')
        self.add_argument('out', type=Path, help=f'file to write, {kinds}')
        self.add_argument(
            '--cls-token',
            choices=CLS_TOKENS,
            default='middle',
            help='where the model has its class token; no file tells head from middle, and every '
            'released model is middle (default: %(default)s)',
        )
        self.add_argument('--backbone-only', action='store_true', help='leave the classifier out')
        self.add_argument('--overwrite', action='store_true', help='replace an existing file')

    def parse_args(self, *args: Any, **kwargs: Any) -> Namespace:  # type: ignore[override]
        """Read the command line and check ``out``.

        Raises:
            UsageError: If it has another suffix, is the source itself, or exists.
        """
        found = super().parse_args(*args, **kwargs)
        assert isinstance(found, Namespace)
        found.out = found.out.expanduser()
        if found.out.suffix not in SUFFIXES:
            raise UsageError(f'the file to write must end in {" or ".join(SUFFIXES)}: {found.out}')
        source = Path(found.source).expanduser()
        if source.exists() and found.out.exists() and source.samefile(found.out):
            raise UsageError(f'{found.out} is the checkpoint to convert: give another name')
        refuse_existing(found.out, found.overwrite)
        return found


def read_source(source: str, console: Console) -> WeightFile:
    """Read the checkpoint, saying so on a terminal while it takes time."""
    with console.status(f'reading {source}'):
        return read_weight_file(source)


def converted_file(
    args: Namespace,
    converted: Conversion,
    others: Sequence[str],
    console: Console,
    holder: str,
    **content: Any,
) -> None:
    """Print the account of a conversion and write it.

    Args:
        args: Of :class:`ConverterParser`.
        converted: What to write.
        others: Entries of the source beside its weights.
        console: For the progress.
        holder: What a ``.pth`` file keeps the weights under.
        **content: What it holds beside them.
    """
    printed = Console(highlight=False, soft_wrap=True)
    Console(highlight=False, width=_WIDTH).print(to_table(converted))
    printed.print(converted.model)
    if others:
        printed.print(f'left behind, beside the weights: {", ".join(others)}')
    with console.status(f'writing {args.out}'):
        packed = pack_weights(converted.weights, args.out.suffix, holder, **content)
        digest = write_hashed(args.out, packed)
    printed.print(f'{args.out}: {len(converted.weights)} tensors, {len(packed) / 2**20:.1f} MiB')
    printed.print(f'SHA-256 {digest}')


def to_table(converted: Conversion) -> Table:
    """One line per tensor, those of all blocks together."""
    table = Table(box=SIMPLE)
    table.add_column('published', no_wrap=True)
    table.add_column('mmvim', no_wrap=True)
    table.add_column('tensors', justify='right')
    table.add_column('shape', no_wrap=True)
    table.add_column('what', overflow='fold')
    for row in converted.rows:
        dropped = row.what.startswith('dropped')
        cells = (row.published or '–', row.ours or '–', str(row.tensors), row.shape, row.what)
        table.add_row(*cells, style='yellow' if dropped else None)
    return table
