"""Count operations and parameters of a config's model, by part and image size.

The unit is that of papers, Vim's included: a multiply-accumulate (MAC) is one, so GMACs are what
papers call GFLOPs. A FLOP is one addition, multiplication or exponential: twice as many.
"""

import copy
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS
from rich.console import Console
from rich.table import Table
from torch import nn

from mmvim.analysis.flops import Count, count_flops, count_parameters
from mmvim.analysis.image_forward import ImageForward
from mmvim.cli.arguments import ToolParser
from mmvim.cli.config import load_config, require
from mmvim.cli.output_folders import make_writable
from mmvim.cli.run_tool import run_tool
from mmvim.errors import UsageError, UserError, first_line
from mmvim.models import VisionMamba
from mmvim.models.layers.direction import DIRECTIONS

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


@dataclass
class Result:
    """What was counted for one image size.

    Attributes:
        shape: (H, W) in pixels, as the network gets them.
        count: The operations.
        device: 'meta' where nothing had to be computed, else 'cpu'.
        paper_scan: MACs of all scans by the paper's formula, None without a Vim backbone.
    """

    shape: Shape
    count: Count
    device: str
    paper_scan: int | None

    @property
    def title(self) -> str:
        """The size as text."""
        return f'{self.shape[0]}×{self.shape[1]}'


def build(cfg: Config, device: str) -> nn.Module:
    """The config's model without weights, for testing."""
    # A copy: some detectors write into their config.
    model: nn.Module = revert_sync_batchnorm(MODELS.build(copy.deepcopy(cfg.model)))
    # Without gradients torch's counter follows only the forward pass through the modules.
    return model.to(device).eval().requires_grad_(False)


def paper_scan(model: nn.Module, tokens: int) -> int | None:
    """The paper's cost of an SSM, 3M(2D)N + M(2D)N, over all blocks and directions.

    Its unit is the MAC: the formula beside it, 4MD² + 2M²D for attention, is one only so.
    """
    mixers = [
        block.mixer
        for backbone in model.modules()
        if isinstance(backbone, VisionMamba)
        for block in backbone.layers[: max(backbone.out_indices) + 1]
    ]
    if not mixers:
        return None
    directions = (2 if DIRECTIONS[mixer.direction].own else 1 for mixer in mixers)
    return sum(
        4 * tokens * mixer.inner_dims * mixer.d_state * count
        for mixer, count in zip(mixers, directions)
    )


class Counting:
    """Counts for one config: on meta tensors, and on real ones once these turn out not to do.

    Args:
        cfg: The config.
    """

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        self.model = build(cfg, 'meta')
        self.device = 'meta'

    def __call__(self, shape: Shape) -> Result:
        """Count one forward pass on one image.

        Raises:
            UserError: If the model refuses images of this size.
        """
        if self.device == 'meta':
            try:
                return self._count(shape)
            except Exception as error:  # whatever a model does that needs numbers
                print(
                    f'note: {type(self.model).__name__} did not run on meta tensors '
                    f'({first_line(error)}); counting on real ones, which takes their time',
                    file=sys.stderr,
                )
            self.model, self.device = build(self.cfg, 'cpu'), 'cpu'
        try:
            return self._count(shape)
        except ValueError as error:
            raise UserError(
                f'the model does not take images of {shape[0]}x{shape[1]}: {error}'
            ) from error

    def _count(self, shape: Shape) -> Result:
        torch.manual_seed(0)
        count = count_flops(self._forward(), torch.rand(1, 3, *shape, device=self.device))
        return Result(shape, count, self.device, paper_scan(self.model, count.tokens))

    def _forward(self) -> ImageForward:
        return ImageForward(self.model, proposals=self.device == 'meta')

    def remarks(self) -> list[str]:
        """What there is to know about the numbers."""
        found = []
        forward = self._forward()
        if forward.proposals:
            regions = forward.regions()
            found.append(
                f'roi_head: {regions["bbox"]} boxes and {regions["mask"]} masks an image, the most '
                'that test_cfg allows'
            )
        elif hasattr(self.model, 'roi_head'):
            found.append('roi_head: as many regions as the untrained first stage proposed')
        published = published_parameters(self.cfg)
        if published is not None:
            found.append(f'parameters as published: {published}')
        return found


def published_parameters(cfg: Config) -> str | None:
    """The published number for the model's head and the size of its Vim backbone."""
    head = cfg.model.get('decode_head') or cfg.model.get('head')
    backbone = cfg.model.get('backbone') or {}
    if not isinstance(head, dict) or backbone.get('type') not in ('mmvim.VisionMamba', VisionMamba):
        return None
    return PUBLISHED_PARAMETERS.get((str(head.get('type')), str(backbone.get('arch', 'tiny'))))


def default_shape(cfg: Config, path: str) -> Shape:
    """``img_size`` of the backbone."""
    size = cfg.model.get('backbone', {}).get('img_size')
    if size is None:
        raise UsageError(f'the backbone of {path} has no img_size: give --shape H W')
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def idle_parts(results: Sequence[Result], parameters: dict[str, int]) -> list[str]:
    """A remark on parts that the pass left out, such as a head for training."""
    idle = [part for part in parameters if not any(r.count.flops.get(part) for r in results)]
    if not idle:
        return []
    return [f'without counted operations, such as what runs in training only: {", ".join(idle)}']


def giga(number: float) -> str:
    """In 10⁹."""
    return f'{number / 1e9:,.3f}'


def to_table(results: Sequence[Result], parameters: dict[str, int]) -> Table:
    """One row per part, for every size MACs and their share."""
    table = Table(title='GMACs: multiply-accumulates, what papers call GFLOPs')
    table.add_column('part')
    table.add_column('parameters', justify='right')
    for result in results:
        table.add_column(result.title, justify='right')
        table.add_column('share', justify='right')
    every = dict.fromkeys(part for result in results for part in result.count.flops)
    parts = [*every, *(part for part in parameters if part not in every)]
    for part in parts:
        row = [part, f'{parameters.get(part, 0):,}']
        for result in results:
            flops = result.count.flops.get(part, 0)
            row += [giga(flops / 2), f'{100 * flops / max(result.count.total, 1):.1f}%']
        table.add_row(*row)
    table.add_section()
    totals = [result.count.total for result in results]
    cells = [cell for total in totals for cell in (giga(total / 2), '100.0%')]
    table.add_row('total', f'{sum(parameters.values()):,}', *cells)
    table.add_row('total in GFLOPs', '', *(cell for total in totals for cell in (giga(total), '')))
    if any(result.paper_scan is not None for result in results):
        cells = [cell for result in results for cell in (giga(result.paper_scan or 0), '')]
        table.add_row('scan, 3M(2D)N + M(2D)N (paper)', '', *cells)
    return table


def warn(results: Sequence[Result]) -> None:
    """Name on stderr what has no count."""
    names = dict.fromkeys(name for result in results for name in result.count.uncounted)
    if names:
        numbers = ', '.join(
            f'{sum(result.count.uncounted.values()) / 1e6:,.1f} M at {result.title}'
            for result in results
        )
        print(
            f'warning: operators that were not counted ({numbers} results): {", ".join(names)}',
            file=sys.stderr,
        )
    layers = dict.fromkeys(name for result in results for name in result.count.invisible)
    if layers:
        print(
            f"warning: layers whose own kernels torch's counter does not see, so that they were "
            f'not counted: {", ".join(layers)}',
            file=sys.stderr,
        )


def as_json(
    results: Sequence[Result], parameters: dict[str, int], remarks: list[str]
) -> dict[str, Any]:
    """Everything, in whole FLOPs; a MAC is two of them."""
    return dict(
        unit='FLOPs: an addition, multiplication or exponential is one; a MAC is two',
        remarks=remarks,
        parameters=dict(total=sum(parameters.values()), parts=parameters),
        sizes=[
            dict(
                shape=result.shape,
                tokens=result.count.tokens,
                device=result.device,
                flops=result.count.total,
                macs=result.count.total / 2,
                parts=result.count.flops,
                paper_scan_macs=result.paper_scan,
                not_counted=dict(
                    results=result.count.uncounted,
                    layers=result.count.invisible,
                ),
            )
            for result in results
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
    parser.add_argument('--out', metavar='F', help='write everything to this .json too')
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if args.out is not None and Path(args.out).suffix != '.json':
        raise UsageError(f'--out must end in .json: {args.out}')
    shapes = [parse_shape(values) for values in args.shape or ()]
    cfg = load_config(args.config, args.cfg_options)
    require(cfg, args.config, 'counting', 'model')
    shapes = shapes or [default_shape(cfg, args.config)]
    if args.out is not None:
        make_writable(Path(args.out).parent, 'the folder of --out')

    counting = Counting(cfg)
    results = [counting(shape) for shape in dict.fromkeys(shapes)]
    parameters = count_parameters(counting.model)
    remarks = [*counting.remarks(), *idle_parts(results, parameters)]
    console = Console(width=max(90, 44 + 20 * len(results)), highlight=False)
    console.print(to_table(results, parameters))
    for remark in remarks:
        print(remark)
    warn(results)
    if args.out is not None:
        held = as_json(results, parameters, remarks)
        Path(args.out).write_text(json.dumps(held, indent=2) + '\n')
        print(f'counts: {args.out}')


if __name__ == '__main__':
    sys.exit(run_tool(main))
