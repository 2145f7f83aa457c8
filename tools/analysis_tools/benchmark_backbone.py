"""Measure Vim or VMamba against other backbones over image sizes: time, memory, FLOPs, parameters.

DeiT, with plain attention or with SDPA, comes from mmpretrain or, where that is missing, from timm;
Swin, ConvNeXt and ResNet are mmpretrain's. Writes backbone.md, backbone.json and backbone.png (with
matplotlib) to --out. Times are medians of interleaved samples: one of each model in turn.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from itertools import product, starmap
from typing import Any, NamedTuple

import torch
from benchmarking import harness, report
from benchmarking.backbones import CONTENDERS, EMBED_DIMS, PATCH, build
from benchmarking.measuring import Call
from benchmarking.report import Row, mebibytes, significant
from torch import Tensor, nn

from mmvim.analysis.flops import count_flops

MODES = ('inference', 'training')
# Vim-Ti against DeiT-Ti with plain attention, batch inference on a GPU (arXiv 2401.09417, figure 1
# and section 4): DeiT's time and memory over Vim's, by resolution.
_PAPER = {'seconds_over_first': {512: 1.0, 1248: 2.8}, 'peak_bytes_over_first': {1248: 1 / 0.132}}
_READING = """\
`{ours} ÷` is the time of {ours} over that of the model in the row, from the medians of interleaved
samples: below 1 {ours} is faster. `spread` is the distance between the quartiles over the median.
`peak` is the most memory that torch held: weights, image, and in training gradients too;
`{ours} ÷ peak` compares it. Parameters are without a classifier. GMACs, what papers call GFLOPs,
are of one image, counted as by `get_flops.py`: operators of single elements, of which the loop of
the published torch algorithm is made, do not count. Training is a forward and a backward pass,
without an optimizer. Plain attention keeps the whole score matrix, SDPA is
`scaled_dot_product_attention`. Models end in the class token, those of four stages in their last
map or its mean, S4ND-ViT in its mean; `--with-neck`, in four maps, which UperNet's pyramid makes of
a plain model's taps, Vim without a class token. Stars in a plot are the paper's figures for DeiT
with plain attention, inference on a GPU."""


class Setting(NamedTuple):
    """One point of the comparison, the same for all models.

    'training' is a forward and a backward pass without an optimizer's step; a ``dtype`` other than
    float32 is autocast's; ``resolution`` is the side of the ``batch`` images in pixels.
    """

    execution: str
    mode: str
    dtype: str
    batch: int
    size: str
    resolution: int


def parse_arguments(argv: Sequence[str]) -> Namespace:
    """The command line; dtypes other than float32 run under autocast."""
    parser = harness.measuring_parser(__doc__, EMBED_DIMS)
    add = parser.add_argument
    add('--resolutions', nargs='+', type=harness.positive, default=[224, 384, 512, 768, 1024, 1248])
    add('--modes', nargs='+', choices=MODES, default=list(MODES))
    add('--with-neck', action='store_true', help='four taps and the pyramid of UperNet (mmseg)')
    add(
        '--contenders',
        nargs='+',
        choices=list(CONTENDERS),
        default=['vim', 'deit', 'deit-plain'],
        help='the first is what the others are compared with; vim-with-cp recomputes its blocks in '
        'training, vim-one-thread has one in its forward pass, vmamba-looped scans as the '
        'published code without its kernels, deit-plain keeps its scores, resnet50 is the same '
        'for all --sizes, s4nd was published as base '
        '(default: %(default)s)',
    )
    args = harness.parse(parser, argv)
    args.resolutions = sorted(set(args.resolutions))
    if any(size % PATCH for size in args.resolutions):
        parser.error(f'--resolutions takes multiples of {PATCH} pixels, got {args.resolutions}')
    return args


def make_step(model: nn.Module, setting: Setting, image: Tensor) -> Call:
    """A prediction, or a forward and a backward pass with a fixed gradient of the outputs."""
    training = setting.mode == 'training'
    model.train(training)
    dtype = None if setting.dtype == 'float32' else getattr(torch, setting.dtype)

    def step() -> tuple[Tensor, ...]:
        with (
            torch.set_grad_enabled(training),
            torch.autocast(image.device.type, dtype, enabled=dtype is not None),
        ):
            result = model(image)
        outputs = (result,) if isinstance(result, Tensor) else tuple(result)
        if not training:
            return outputs
        ones = [torch.ones_like(output) for output in outputs]
        return torch.autograd.grad(outputs, list(model.parameters()), ones)

    return step


def measure(setting: Setting, args: Namespace) -> list[Row]:
    """One row per model."""
    generator = torch.Generator().manual_seed(0)
    shape = (setting.batch, 3, setting.resolution, setting.resolution)
    image = torch.randn(shape, generator=generator).to(args.device)
    held: dict[str, int] = {}
    counted: dict[str, Row] = {}

    def make(name: str) -> Call:
        torch.manual_seed(0)
        model = build(name, setting.size, setting.resolution, args.with_neck).to(args.device)
        counted[name] = dict(parameters=sum(p.numel() for p in model.parameters()))
        model.eval()  # which of some models returns nothing
        counted[name]['macs'] = count_flops(model, image[:1]).total / 2
        step = make_step(model, setting, image)
        held[name] = sum(t.nbytes for t in (image, *model.parameters(), *model.buffers()))
        return step

    makers = {name: partial(make, name) for name in args.contenders}
    found = harness.contest(makers, setting.execution, args, held, {})
    for name, row in found.items():
        row.update(setting._asdict(), model=name, title=CONTENDERS[name][0])
        row.update(counted.get(name, {}))
    return list(found.values())


def write(result: dict[str, Any], args: Namespace) -> None:
    """The report. A CPU's absolute times stay out of the tables: they are the machine's mood."""
    ours = CONTENDERS[args.contenders[0]][0]
    inverse = lambda ratio: significant(1 / ratio)  # noqa: E731
    milliseconds = {'ms': ('seconds', lambda seconds: significant(1e3 * seconds))}
    columns = {
        'resolution': ('resolution', str),
        'model': ('title', str),
        'M parameters': ('parameters', lambda number: significant(number / 1e6)),
        'GMACs': ('macs', lambda number: significant(number / 1e9)),
        f'{ours} ÷': ('seconds_over_first', inverse),
        'spread': ('spread', '{:.0%}'.format),
        **(milliseconds if args.device.type == 'cuda' else {}),
        'peak MiB': ('peak_bytes', mebibytes),
        f'{ours} ÷ peak': ('peak_bytes_over_first', inverse),
    }
    compared = (args.contenders[:1], args.sizes, args.modes)
    report.write(
        args.out,
        'backbone',
        result,
        ['# Backbones', _READING.format(ours=ours)],
        group=('size', 'mode', 'batch', 'dtype', 'execution'),
        columns=columns,
        x='resolution',
        panels={f'time ÷ {ours}': 'seconds_over_first', f'peak ÷ {ours}': 'peak_bytes_over_first'},
        line='{title}',
        stars=_PAPER if compared == (['vim'], ['tiny'], ['inference']) else {},
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all settings; the resolution changes first."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parse_arguments(argv)
    first = (args.execution, args.modes, args.dtypes, args.batch, args.sizes)
    settings = starmap(Setting, product(*first, args.resolutions))
    return harness.run('benchmark_backbone', argv, args, settings, measure, write)


if __name__ == '__main__':
    sys.exit(main())
