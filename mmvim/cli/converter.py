"""Shared parts of the two converters: command line, reading, the table, writing."""

from __future__ import annotations

import hashlib
import io
import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from mmvim.atomic_files import write_atomically
from mmvim.checkpoints.conversion import Conversion
from mmvim.checkpoints.reading import SUFFIXES, WeightFile, read_weight_file
from mmvim.cli.arguments import PlainParser
from mmvim.errors import UsageError, UserError
from mmvim.models.token_layout import CLS_TOKENS
from mmvim.version import __version__

_WIDTH = 170  # the keys of both sides beside each other


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
            help='where the model has its class token: no tensor tells head from middle, and every '
            'released model is middle (default: what the file notes or its tensors tell)',
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
        if found.out.exists() and not found.overwrite:
            raise UserError(f'{found.out} exists: give another name, or --overwrite to replace it')
        return found


def read_source(source: str) -> WeightFile:
    """Read the checkpoint, saying so on a terminal while it takes time."""
    with Console(stderr=True).status(f'reading {source}'):
        return read_weight_file(source)


def converted_file(args: Namespace, converted: Conversion, file: WeightFile, holder: str) -> None:
    """Print the account of a conversion and write it.

    Args:
        args (Namespace): Of :class:`ConverterParser`.
        converted (Conversion): What to write.
        file (WeightFile): The source.
        holder (str): What a ``.pth`` file keeps the weights under.
    """
    printed = Console(highlight=False, soft_wrap=True)
    Console(highlight=False, width=_WIDTH).print(to_table(converted))
    printed.print(converted.model)
    if file.others:
        printed.print(f'left behind, beside the weights: {", ".join(file.others)}')
    meta = dict(
        mmvim_version=__version__,
        converted_from=Path(args.source).name,
        cls_token=converted.cls_token,
    )
    with Console(stderr=True).status(f'writing {args.out}'):
        packed = pack_weights(converted.weights, args.out.suffix, holder, meta)
        try:
            write_atomically(args.out, packed)
        except OSError as error:
            raise UserError(f'{args.out} cannot be written ({error.strerror})') from error
    printed.print(f'{args.out}: {len(converted.weights)} tensors, {len(packed) / 2**20:.1f} MiB')
    printed.print(f'SHA-256 {hashlib.sha256(packed).hexdigest()}')


def pack_weights(
    weights: Mapping[str, torch.Tensor], suffix: str, holder: str, meta: Mapping[str, str]
) -> bytes:
    """The bytes of a file of weights.

    Args:
        weights (Mapping[str, torch.Tensor]): Stored contiguous, each on its own.
        suffix (str): '.safetensors' or '.pth'.
        holder (str): What a ``.pth`` file keeps the weights under.
        meta (Mapping[str, str]): What the file says about itself.

    Returns:
        The same for the same input.
    """
    # A slice would take the whole of what it is cut from with it into the file.
    own = {
        key: value.detach().clone(memory_format=torch.contiguous_format)
        for key, value in weights.items()
    }
    if suffix == '.safetensors':
        return _sorted_metadata(safetensors.torch.save(own, metadata={'format': 'pt', **meta}))
    buffer = io.BytesIO()
    torch.save({'meta': dict(meta), holder: own}, buffer)
    return buffer.getvalue()


def _sorted_metadata(packed: bytes) -> bytes:
    """Put the metadata of a safetensors file in order, which the library writes in any."""
    start = 8 + int.from_bytes(packed[:8], 'little')
    header = json.loads(packed[8:start])
    header['__metadata__'] = dict(sorted(header['__metadata__'].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)  # tensors are aligned
    return len(text).to_bytes(8, 'little') + text + packed[start:]


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
