"""Measure Vim against DeiT of its size, with plain attention and with SDPA, over image sizes.

DeiT comes from mmpretrain or, where that is missing, from timm. Writes backbone.md, backbone.json
and backbone.png (with matplotlib) to --out. Times are medians of interleaved samples: one of each
model in turn.
"""

from __future__ import annotations

import importlib.util
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import torch
from benchmarking import backbone_report, backbones, machine, report
from benchmarking.arguments import check_measuring, measuring_parser
from benchmarking.memory import free_bytes, peak_bytes
from benchmarking.report import Row
from benchmarking.timing import OOM, Timing, capture, interleave, is_out_of_memory, release
from torch import Tensor, nn

from mmvim_ops import BACKENDS

EXECUTIONS = ('eager', 'compiled', 'graphs', 'compiled+graphs')
MODES = ('inference', 'training')
DTYPES = ('float32', 'bfloat16', 'float16')
RESOLUTIONS = (224, 384, 512, 768, 1024, 1248, 1536, 2048)
_FREE_SHARE = 0.8  # of the free memory that plain attention's scores may take


@dataclass(frozen=True)
class Setting:
    """One point of the comparison, the same for all models.

    'training' is a forward and a backward pass without an optimizer's step; a ``dtype`` other than
    float32 is autocast's; ``resolution`` is the side of the ``batch`` images in pixels.
    """

    execution: str
    threads: int
    mode: str
    dtype: str
    batch: int
    size: str
    resolution: int

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return (self.resolution // backbones.PATCH) ** 2 + 1


def parse_arguments(argv: Sequence[str]) -> Namespace:
    """The command line; dtypes other than float32 run under autocast."""
    parser = measuring_parser(__doc__, list(backbones.DEIT_HEADS), DTYPES, EXECUTIONS)
    parser.add_argument('--resolutions', nargs='+', type=int, default=list(RESOLUTIONS))
    parser.add_argument('--modes', nargs='+', choices=MODES, default=list(MODES))
    parser.add_argument(
        '--with-neck', action='store_true', help='four taps and the pyramid of UperNet (mmseg)'
    )
    parser.add_argument('--scan-backend', choices=BACKENDS, default='auto', help='of Vim')
    parser.add_argument(
        '--against',
        nargs='+',
        choices=backbones.MODELS[1:],
        default=['deit-sdpa', 'deit-plain'],
        help='with Vim itself recomputing its blocks in training (with_cp) among them',
    )
    parser.add_argument('--deit-from', choices=backbones.DEIT_LIBRARIES)
    args = parser.parse_args(argv)
    odd = [size for size in args.resolutions if size < 1 or size % backbones.PATCH]
    if odd:
        parser.error(f'--resolutions takes multiples of {backbones.PATCH} pixels, got {odd}')
    args.resolutions = sorted(set(args.resolutions))
    args.deit_from = args.deit_from or backbones.installed_deit()
    if args.deit_from is None or importlib.util.find_spec(args.deit_from) is None:
        wanted = args.deit_from or ' or '.join(backbones.DEIT_LIBRARIES)
        parser.error(f'DeiT needs {wanted}, which is not installed')
    if args.with_neck and importlib.util.find_spec('mmseg') is None:
        parser.error("--with-neck needs mmseg's Feature2Pyramid, and mmseg is not installed")
    check_measuring(parser, args)
    return args


def all_settings(args: Namespace) -> Iterator[Setting]:
    """Every combination; the resolution changes first."""
    first = (args.execution, args.threads, args.modes, args.dtypes)
    for values in product(*first, args.batch, args.sizes, args.resolutions):
        yield Setting(*values)


class Step:
    """One call of a model on a fixed batch: a prediction, or a forward and a backward pass."""

    def __init__(self, model: nn.Module, setting: Setting, image: Tensor) -> None:
        model.train(setting.mode == 'training')
        self.model, self.setting, self.image = model, setting, image
        self._grads: tuple[Tensor, ...] | None = None
        self._function: nn.Module | Callable[[Tensor], Any] = model
        if 'compiled' in setting.execution:
            self._function = torch.compile(model)
        self.run: Callable[[], object] = self._plain

    def _autocast(self) -> AbstractContextManager[object]:
        if self.setting.dtype == 'float32':
            return nullcontext()
        return torch.autocast(self.image.device.type, getattr(torch, self.setting.dtype))

    def _plain(self) -> object:
        training = self.setting.mode == 'training'
        with torch.set_grad_enabled(training), self._autocast():
            outputs = backbones.outputs_of(self._function(self.image))
        if not training:
            return outputs
        if self._grads is None:  # the same seeded gradient of the outputs in every step
            generator = torch.Generator(self.image.device).manual_seed(0)
            self._grads = tuple(torch.empty_like(y).normal_(generator=generator) for y in outputs)
        for parameter in self.model.parameters():
            parameter.grad = None
        torch.autograd.backward(outputs, self._grads)
        return None

    def capture(self) -> None:
        """From now on replay the step as one CUDA graph."""
        self.run = capture(self._plain)


def too_large(name: str, setting: Setting, device: torch.device) -> str | None:
    """The reason not to try a model on a CPU, where too large a one ends the process."""
    if name != 'deit-plain' or device.type != 'cpu':
        return None
    training = setting.mode == 'training'
    needed = backbones.score_bytes(setting.size, setting.batch, setting.tokens, training)
    free = free_bytes()
    if free is None or needed < _FREE_SHARE * free:
        return None
    return f'OOM (scores {needed / 2**30:.0f} GiB, free {free / 2**30:.0f})'


def measure(setting: Setting, args: Namespace) -> list[Row]:
    """One row per model."""
    generator = torch.Generator().manual_seed(0)
    shape = (setting.batch, 3, setting.resolution, setting.resolution)
    image = torch.randn(shape, generator=generator).to(args.device)
    about = (setting.size, setting.resolution, args.with_neck, args.scan_backend, args.deit_from)
    rows, steps = {}, {}
    for name in ('vim', *args.against):
        row = rows[name] = dict(asdict(setting), model=name, tokens=setting.tokens, status='ok')
        reason = too_large(name, setting, args.device)
        if reason is not None:
            row['status'] = reason
            continue
        torch.manual_seed(0)
        model = backbones.build(name, *about).to(args.device)
        weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        row.update(parameters=sum(tensor.numel() for tensor in model.parameters()))
        step = Step(model, setting, image)
        try:
            step.run()  # what happens once happens here: compilation, kernel choice, gradients
            if not args.no_memory:
                for parameter in model.parameters():
                    parameter.grad = None
                row['peak_bytes'] = weights + image.nbytes + peak_bytes(step.run, args.device)
            if 'graphs' in setting.execution:
                step.capture()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            row['status'] = OOM
            release(args.device)
        else:
            steps[name] = step.run
    for name, timing in interleave(steps, args.device, args.effort, warm=True).items():
        if not isinstance(timing, Timing):
            rows[name]['status'] = timing
            continue
        rows[name].update(median_seconds=timing.median, spread=timing.spread)
        rows[name]['images_per_second'] = setting.batch / timing.median
        rows[name]['rounds'] = len(timing.samples)
    add_ratios(list(rows.values()))
    return list(rows.values())


def add_ratios(rows: list[Row]) -> None:
    """Vim over every model, in time and in memory, where both were measured."""
    vim = next(row for row in rows if row['model'] == 'vim')
    for row in rows:
        for key, of in (('vim_time_ratio', 'median_seconds'), ('vim_memory_ratio', 'peak_bytes')):
            if vim['status'] == row['status'] == 'ok' and of in vim and of in row:
                row[key] = vim[of] / row[of]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all settings; the report is written anew after each of them."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parse_arguments(argv)
    result: dict[str, Any] = dict(
        tool='benchmark_backbone',
        command=machine.command_line(__file__, argv),
        device=args.device.type,
        machine=machine.describe_machine(args.device),
        versions=machine.describe_versions(),
        scan_backend=args.scan_backend,
        deit_from=args.deit_from,
        with_neck=args.with_neck,
        rows=[],
    )
    settings = list(all_settings(args))
    for number, setting in enumerate(settings, start=1):
        where = f'{setting.resolution}² B {setting.batch} {setting.dtype} {setting.execution}'
        what = f'{setting.size} {setting.mode} {where}'
        print(f'[{number}/{len(settings)}] {what}', file=sys.stderr, flush=True)
        torch.set_num_threads(setting.threads)
        if 'compiled' in setting.execution:
            torch._dynamo.reset()  # every setting is compiled for itself
        result['rows'] += measure(setting, args)
        release(args.device)
        result['crossovers'] = backbone_report.crossovers(result['rows'])
        report.write(args.out, 'backbone', result, backbone_report.to_markdown(result))
    backbone_report.plot(args.out, result)
    print(f'report: {args.out / "backbone.md"}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
