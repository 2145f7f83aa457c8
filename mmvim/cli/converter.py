"""Shared parts of the two converters: command line, reading, the table, writing."""

from __future__ import annotations

import hashlib
import io
import json
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from mmvim.atomic_files import write_atomically
from mmvim.checkpoints.conversion import DROPPED, Conversion
from mmvim.checkpoints.reading import HOLDERS, META_ENTRY, SUFFIXES, read_checkpoint, weights_of
from mmvim.cli.arguments import PlainParser
from mmvim.errors import UsageError, UserError
from mmvim.models.token_layout import CLS_TOKENS

_WIDTH = 170  # the keys of both sides beside each other
Convert = Callable[[Mapping[str, torch.Tensor], Namespace, object], Conversion]


class ConverterParser(PlainParser):
    """The arguments of both converters.

    Args:
        description (str): What the tool does.
    """

    def __init__(self, description: str) -> None:
        super().__init__(description)
        kinds = ' or '.join(SUFFIXES)
        self.add_argument('source', help=f'checkpoint to convert: a {kinds} file or an URL')
        self.add_argument('out', type=Path, help=f'file to write, {kinds}')
        self.add_argument(
            '--cls-token',
            choices=tuple(CLS_TOKENS),
            help='where a Vim has its class token: no tensor tells head from middle, and every '
            'released model is middle (default: what the file notes or its tensors tell)',
        )
        self.add_argument('--backbone-only', action='store_true', help='leave the classifier out')
        self.add_argument('--overwrite', action='store_true', help='replace an existing file')


def run_converter(
    parser: ConverterParser, argv: Sequence[str] | None, convert: Convert, holder: str
) -> None:
    """Read, convert, print what became of every tensor, write.

    Args:
        parser (ConverterParser): Of the tool.
        argv (Sequence[str] | None): The command line, None for that of the process.
        convert (Callable): The weights, the parsed arguments and the ``cls_token`` of the file's
            ``meta`` to a :class:`Conversion`.
        holder (str): What a ``.pth`` file keeps the converted weights under.

    Raises:
        UserError: If the file cannot be read, converted or written.
    """
    args = parser.parse_args(argv)
    source, out = args.source, args.out.expanduser()
    if out.suffix not in SUFFIXES:
        raise UsageError(f'the file to write must end in {" or ".join(SUFFIXES)}: {out}')
    if out.exists() and Path(source).exists() and out.samefile(source):
        raise UsageError(f'{out} is the checkpoint to convert: give another name')
    if out.exists() and not args.overwrite:
        raise UserError(f'{out} exists: give another name, or --overwrite to replace it')
    # A published file of Vim-B and its optimiser takes seconds.
    with Console(stderr=True).status(f'reading {source}'):
        checkpoint = read_checkpoint(source)
    meta = checkpoint.get('meta')
    noted = meta.get('cls_token') if isinstance(meta, Mapping) else None
    try:
        with Console(stderr=True).status('converting'):
            converted = convert(weights_of(checkpoint, source), args, noted)
    except UserError as error:
        raise type(error)(f'{source}: {error}') from error
    packed = pack_weights(converted.weights, out.suffix, holder, converted.notes)
    Console(highlight=False, width=_WIDTH).print(_table(converted))
    print(converted.model)
    others = [str(key) for key in checkpoint if key not in HOLDERS]
    if others and len(others) < len(checkpoint):
        print(f'left behind, beside the weights: {", ".join(others)}')
    try:
        write_atomically(out, packed)
    except OSError as error:
        raise UserError(f'{out} cannot be written ({error.strerror})') from error
    print(f'{out}: {len(converted.weights)} tensors, {len(packed) / 2**20:.1f} MiB')
    print(f'SHA-256 {hashlib.sha256(packed).hexdigest()}')


def pack_weights(
    weights: Mapping[str, torch.Tensor], suffix: str, holder: str, meta: Mapping[str, Any]
) -> bytes:
    """The bytes of a file of weights, the same for the same input.

    Args:
        weights (Mapping[str, torch.Tensor]): Stored contiguous, each on its own.
        suffix (str): '.safetensors' or '.pth'.
        holder (str): What a ``.pth`` file keeps the weights under.
        meta (Mapping[str, Any]): Notes in the file, such as the ``cls_token``, which no tensor
            tells.
    """
    # A slice would take the whole of what it is cut from with it into the file.
    own = OrderedDict(
        (key, value.detach().clone(memory_format=torch.contiguous_format))
        for key, value in weights.items()
    )
    if suffix == '.safetensors':
        # One entry, because several are written in any order.
        noted = json.dumps(meta, default=lambda array: array.tolist())
        return safetensors.torch.save(own, {META_ENTRY: noted})
    if hasattr(weights, '_metadata'):  # versions of modules, read by their loading hooks
        own._metadata = weights._metadata  # type: ignore[attr-defined]
    buffer = io.BytesIO()
    torch.save({'meta': dict(meta), holder: own}, buffer)
    return buffer.getvalue()


def _table(converted: Conversion) -> Table:
    """One line per tensor, those of all blocks together."""
    table = Table(box=SIMPLE)
    for title in ('from', 'to', 'tensors', 'shape', 'what'):
        table.add_column(title, no_wrap=title != 'what')
    for row in converted.rows:
        cells = (row.source or '–', row.target or '–', str(row.tensors), row.shape, row.what)
        table.add_row(*cells, style='yellow' if row.what.startswith(DROPPED) else None)
    return table
