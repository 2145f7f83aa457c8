"""Time nms and RoI Align as mmvim serves them beside those that mmcv compiles, which it needs."""

from __future__ import annotations

import shlex
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarking.harness import circumstances
from benchmarking.measuring import interleave
from benchmarking.report import facts, significant, table

from mmvim import mmcv_ops
from mmvim.mmcv_ops import roi_align, suppression

# RoIs, bins along a side, mean side in pixels of the image, channels, side of the map: the boxes
# and masks of ViTDet at 1024 pixels on the finest level, the masks of the demo.
ROIS = ((512, 7, 64, 256, 256), (128, 14, 64, 256, 256), (64, 14, 24, 64, 32))
READING = """`÷ compiled` is the time over that of the operator that mmcv compiles: below 1 it is
faster. Times are medians of interleaved samples; `spread` is the distance between their quartiles
over the median."""


def cases() -> Iterator[tuple[str, str, tuple[Any, ...], dict[str, Any]]]:
    """What is timed: its title, the function's name and its arguments."""
    for count in (1000, 5000):
        low = torch.rand(count, 2) * 900
        boxes = torch.cat([low, low + torch.rand(count, 2) * 120], 1)
        inputs = (boxes, torch.rand(count))
        yield f'nms of {count} boxes', 'nms', inputs, dict(iou_threshold=0.7, offset=0)
    for count, bins, side, channels, length in ROIS:
        image, grad = (
            torch.randn(1, channels, length, length),
            torch.rand(count, channels, bins, bins),
        )
        low = torch.rand(count, 2) * (4 * length - side)
        high = low + side * (0.5 + torch.rand(count, 2))
        rois = torch.cat([torch.zeros(count, 1), low, high], 1)
        options = dict(aligned_height=bins, aligned_width=bins, spatial_scale=0.25)
        options |= dict(sampling_ratio=0, pool_mode=1, aligned=True)
        title = f'{count} RoIs, {bins}² bins of {channels}×{length}²'
        inputs = (image, rois, torch.zeros_like(grad), torch.zeros(0), torch.zeros(0))
        yield f'{title}, forward', 'roi_align_forward', inputs, options
        inputs = (grad, rois, torch.zeros(0), torch.zeros(0), torch.zeros_like(image))
        yield f'{title}, backward', 'roi_align_backward', inputs, options


def served(name: str, source: str) -> Callable[..., object]:
    """An operator of mmvim that comes from torchvision or torch."""
    home: Any = suppression if name == 'nms' else roi_align

    def call(*inputs: Any, **options: Any) -> object:
        home.has_torchvision_ops = lambda: source == 'torchvision'
        return getattr(home, name)(*inputs, **options)

    return call


def main(argv: Sequence[str]) -> None:
    """Measure all cases on the CPU and write a table."""
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument('--out', type=Path, required=True, help='Markdown file to write')
    parser.add_argument('--rounds', type=int, default=5, help='at least')
    parser.add_argument('--seconds', type=float, default=2.0, help='a case, at least')
    args = parser.parse_args(argv)
    args.device, args.threads = torch.device('cpu'), torch.get_num_threads()
    if mmcv_ops.sources()['nms'] != 'compiled':
        parser.error('mmcv has no compiled operators here to compare with: make install MMCV=full')
    from mmcv import _ext

    sources = ('torchvision', 'torch') if mmcv_ops.has_torchvision_ops() else ('torch',)
    columns = {'operator': ('title', str), 'from': ('source', str)}
    columns |= {'÷ compiled': ('ratio', significant), 'spread': ('spread', '{:.0%}'.format)}
    rows: list[dict[str, Any]] = []
    about = [facts(key.capitalize(), value) for key, value in circumstances(args).items()]
    for title, name, inputs, options in cases():
        calls = {'compiled': getattr(_ext, name), **{each: served(name, each) for each in sources}}
        calls = {key: partial(call, *inputs, **options) for key, call in calls.items()}
        found = interleave(calls, args)
        for key, row in found.items():
            ratio = row['seconds'] / found['compiled']['seconds']
            rows.append(dict(row, title=title, source=key, ratio=ratio))
    command = 'python tools/analysis_tools/benchmark_mmcv_ops.py ' + shlex.join(argv)
    command = f'```bash\nOMP_NUM_THREADS={args.threads} {command}\n```'
    texts = ["# mmcv's operators", command, *about, READING, table(rows, columns)]
    args.out.write_text('\n\n'.join(texts) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main(sys.argv[1:])
