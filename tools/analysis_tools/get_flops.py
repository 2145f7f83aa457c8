"""Count operations and parameters of a config's model, by part and image size.

The unit is that of papers, Vim's included: a multiply-accumulate (MAC) is one, so GMACs are what
papers call GFLOPs. A FLOP is one addition, multiplication or exponential: twice as many.
"""

import copy
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS
from rich.console import Console
from rich.table import Table
from torch import nn

from mmvim.analysis.flops import Count, count_flops, count_parameters, paper_scan_macs
from mmvim.analysis.image_forward import ImageForward
from mmvim.cli.arguments import ToolParser
from mmvim.cli.prepare import make_writable, prepare
from mmvim.cli.run_tool import run_tool
from mmvim.errors import UsageError, UserError, first_line
from mmvim.models import VisionMamba

Shape = tuple[int, int]
# As published, by head and size: of the released classifiers (1000 classes), and the paper's
# rounded figure for UperNet on ADE20K (150 classes).
PUBLISHED_PARAMETERS = {
    ('LinearClsHead', 'tiny'): '7,148,008 (released, 1000 classes)',
    ('LinearClsHead', 'small'): '25,796,584 (released, 1000 classes)',
    ('LinearClsHead', 'base'): '97,598,440 (released, 1000 classes)',
    ('UPerHead', 'tiny'): '13 M (paper, 150 classes)',
    ('UPerHead', 'small'): '46 M (paper, 150 classes)',
}
# Real tensors: an image and the first features of any model, in numbers a pixel at the least.
_NUMBERS_A_PIXEL = 6


def build(cfg: Config, device: str) -> nn.Module:
    """The config's model without weights, for testing; on 'meta' it takes no memory."""
    with torch.device(device):
        # A copy: some detectors write into their config.
        model: nn.Module = revert_sync_batchnorm(MODELS.build(copy.deepcopy(cfg.model)))
    return model.to(device).eval().requires_grad_(False)


def count(model: nn.Module, shape: Shape) -> Count:
    """Count one forward pass on one image, on the device of the model."""
    torch.manual_seed(0)
    device = next(model.parameters()).device
    return count_flops(model, torch.rand(1, 3, *shape, device=device))


def count_all(cfg: Config, shapes: Sequence[Shape]) -> tuple[nn.Module, list[Count]]:
    """Count on meta tensors, or on real ones where these do not do; the model that did.

    Raises:
        UserError: If the model refuses images of a size, or they do not fit into memory.
    """
    try:
        model = build(cfg, 'meta')
        return model, [count(model, shape) for shape in shapes]
    except Exception as error:  # whatever a model does that needs numbers
        print(
            f'note: the model did not run on meta tensors ({first_line(error)}); counting on real '
            'ones, which takes their time',
            file=sys.stderr,
        )
    largest = max(shapes, key=math.prod)
    if 4 * _NUMBERS_A_PIXEL * math.prod(largest) > memory():
        raise UserError(
            f'images of {largest[0]}x{largest[1]} do not fit into the memory of this machine'
        )
    try:
        model = build(cfg, 'cpu')
        return model, [count(model, shape) for shape in shapes]
    except (ValueError, MemoryError, RuntimeError) as error:
        sizes = ', '.join(f'{height}x{width}' for height, width in shapes)
        raise UserError(
            f'the model does not take images of {sizes}: {error}'
            if isinstance(error, ValueError)
            else f'the model cannot be built and run on images of {sizes}: {first_line(error)}'
        ) from error


def memory() -> int:
    """Bytes of the machine's memory."""
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def remarks(cfg: Config, model: nn.Module, counts: Sequence[Count]) -> list[str]:
    """Notes on the numbers."""
    found = []
    forward = ImageForward(model, proposals=counts[0].device == 'meta')
    if forward.proposals:
        regions = forward.regions()
        found.append(
            f'roi_head: {regions["bbox"]} boxes and {regions["mask"]} masks an image, the most '
            'that test_cfg allows'
        )
    elif hasattr(model, 'roi_head'):
        found.append('roi_head: as many regions as the untrained first stage proposed')
    head = cfg.model.get('decode_head') or cfg.model.get('head')
    backbone = cfg.model.get('backbone') or {}
    if isinstance(head, dict) and backbone.get('type') in ('mmvim.VisionMamba', VisionMamba):
        key = (str(head.get('type')), str(backbone.get('arch', 'tiny')))
        if key in PUBLISHED_PARAMETERS:
            found.append(f'parameters as published: {PUBLISHED_PARAMETERS[key]}')
    idle = [part for part in count_parameters(model) if not any(c.flops.get(part) for c in counts)]
    if idle:
        what = 'without counted operations, such as what runs in training only'
        found.append(f'{what}: {", ".join(idle)}')
    return found


def giga(number: float) -> str:
    """In 10⁹."""
    return f'{number / 1e9:,.3f}'


def to_table(model: nn.Module, counts: Sequence[Count]) -> Table:
    """One row per part, for every size MACs and their share."""
    parameters = count_parameters(model)
    table = Table(title='GMACs: multiply-accumulates, what papers call GFLOPs')
    table.add_column('part')
    table.add_column('parameters', justify='right')
    for found in counts:
        table.add_column('×'.join(map(str, found.shape)), justify='right')
        table.add_column('share', justify='right')
    for part in dict.fromkeys([*(part for found in counts for part in found.flops), *parameters]):
        row = [part, f'{parameters.get(part, 0):,}']
        for found in counts:
            flops = found.flops.get(part, 0)
            row += [giga(flops / 2), f'{100 * flops / max(found.total, 1):.1f}%']
        table.add_row(*row)
    table.add_section()
    cells = [cell for found in counts for cell in (giga(found.total / 2), '100.0%')]
    table.add_row('total', f'{sum(parameters.values()):,}', *cells)
    cells = [cell for found in counts for cell in (giga(found.total), '')]
    table.add_row('total in GFLOPs', '', *cells)
    scans = [paper_scan_macs(model, found.tokens) for found in counts]
    if None not in scans:
        cells = [cell for macs in scans for cell in (giga(macs or 0), '')]
        table.add_row('scan, 3M(2D)N + M(2D)N (paper)', '', *cells)
    return table


def warn(counts: Sequence[Count]) -> None:
    """Name on stderr what has no count."""
    names = dict.fromkeys(name for found in counts for name in found.uncounted)
    layers = dict.fromkeys(name for found in counts for name in found.invisible)
    if names:
        numbers = ', '.join(
            f'{sum(found.uncounted.values()) / 1e6:,.1f} M at {"×".join(map(str, found.shape))}'
            for found in counts
        )
        what = f'operators that were not counted ({numbers} results)'
        print(f'warning: {what}: {", ".join(names)}', file=sys.stderr)
    if layers:
        what = (
            "layers whose own kernels torch's counter does not see, so that they were not counted"
        )
        print(f'warning: {what}: {", ".join(layers)}', file=sys.stderr)


def as_json(model: nn.Module, counts: Sequence[Count], said: list[str]) -> dict[str, Any]:
    """Everything, in whole FLOPs; a MAC is two of them."""
    parameters = count_parameters(model)
    return dict(
        unit='FLOPs: an addition, multiplication or exponential is one; a MAC is two',
        remarks=said,
        parameters=dict(total=sum(parameters.values()), parts=parameters),
        sizes=[
            dict(
                shape=found.shape,
                tokens=found.tokens,
                device=found.device,
                flops=found.total,
                macs=found.total / 2,
                parts=found.flops,
                paper_scan_macs=paper_scan_macs(model, found.tokens),
                not_counted=dict(results=found.uncounted, layers=found.invisible),
            )
            for found in counts
        ],
    )


def parse_shape(values: Sequence[int]) -> Shape:
    """``--shape`` with one number or two."""
    if len(values) > 2 or min(values) < 1:
        given = ' '.join(map(str, values))
        raise UsageError(f'--shape takes H W, or one number for both, from 1 on; got {given}')
    return (values[0], values[-1])


def main(argv: Sequence[str] | None = None) -> None:
    """Count, print the table, write --out."""
    parser = ToolParser("Count operations and parameters of a config's model, by part.")
    parser.add_argument(
        '--shape',
        nargs='+',
        type=int,
        action='append',
        metavar='N',
        help='height and width in pixels, after preprocessing, or one number for both; several '
        "times for several sizes (default: the backbone's img_size)",
    )
    parser.add_argument(
        '--out', dest='file', metavar='F', help='write everything to this .json too'
    )
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if args.file is not None and Path(args.file).suffix != '.json':
        raise UsageError(f'--out must end in .json: {args.file}')
    shapes = [parse_shape(values) for values in args.shape or ()]
    cfg, _ = prepare(args, 'counting', 'model')
    if not shapes:
        size = cfg.model.get('backbone', {}).get('img_size')
        if size is None:
            raise UsageError(f'the backbone of {args.config} has no img_size: give --shape H W')
        shapes = [parse_shape([size] if isinstance(size, int) else size)]
    if args.file is not None:
        make_writable(Path(args.file).parent, 'the folder of --out')

    model, counts = count_all(cfg, list(dict.fromkeys(shapes)))
    said = remarks(cfg, model, counts)
    console = Console(width=max(90, 44 + 20 * len(counts)), highlight=False)
    console.print(to_table(model, counts))
    print('\n'.join(said))
    warn(counts)
    if args.file is not None:
        Path(args.file).write_text(json.dumps(as_json(model, counts, said), indent=2) + '\n')
        print(f'counts: {args.file}')


if __name__ == '__main__':
    sys.exit(run_tool(main))
