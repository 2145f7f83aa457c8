"""Test one checkpoint on images of several sizes, without training it again.

Table, JSON and plot of every metric over the image size, as the authors of VMamba compare models.
"""

import copy
import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from mmengine.config import Config

from mmvim.analysis.resolutions import resolution, set_resolution
from mmvim.atomic_files import write_atomically
from mmvim.cli.arguments import ToolParser
from mmvim.cli.prepare import build_runner, prepare
from mmvim.cli.run_tool import run_tool
from mmvim.datasets.pipelines import pipeline_owner
from mmvim.errors import UsageError, UserError, first_line

# Sides at which VMamba (arXiv 2401.10166) is compared, and one beyond.
SIZES = (224, 288, 384, 512, 640, 768, 1024)


def test_at(cfg: Config, size: int, args: Namespace) -> dict[str, Any]:
    """The ``size`` of a test, the ``changes`` to the config, and the ``metrics`` by name.

    Raises:
        UserError: If the model does not take images of this size, or memory does not suffice.
    """
    cfg = copy.deepcopy(cfg)
    changes = set_resolution(cfg, size, args.config)
    print(f'{size}: {", ".join(changes)}', file=sys.stderr)
    cfg.work_dir = str(args.out / str(size))
    # mmengine keeps loggers by name for the whole process.
    cfg.experiment_name = f'{Path(args.config).stem}_{size}'
    runner = build_runner(cfg)
    try:
        metrics = runner.test()
    except (torch.cuda.OutOfMemoryError, ValueError) as error:
        raise UserError(
            f'the test failed at size {size}: {first_line(error)}; the sizes before it are done, '
            'and where memory is short test_dataloader.batch_size=1 may help'
        ) from error
    metrics = {name: float(value) for name, value in metrics.items()}
    return dict(size=size, changes=changes, metrics=metrics)


def to_markdown(results: Sequence[dict[str, Any]], own_size: int) -> str:
    """One row per size; the size that the config itself tests at is marked."""
    names = list(results[0]['metrics'])
    lines = [['size', *names], ['---:'] * (len(names) + 1)]
    for result in results:
        own = ' (config)' if result['size'] == own_size else ''
        numbers = [f'{result["metrics"][name]:.2f}' for name in names]
        lines.append([f'{result["size"]}{own}', *numbers])
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def draw(results: Sequence[dict[str, Any]], own_size: int, file: Path) -> None:
    """Every metric over the image size."""
    figure = Figure(figsize=(6.4, 4.2), layout='constrained')
    axis = figure.add_subplot()
    sizes = [result['size'] for result in results]
    for name in results[0]['metrics']:
        axis.plot(sizes, [result['metrics'][name] for result in results], marker='o', label=name)
    axis.axvline(own_size, color='grey', linestyle=':', label="the config's size")
    axis.set(xlabel='image size (pixels)', ylabel='metric', xticks=sizes)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    figure.savefig(file, dpi=150)


def write(results: Sequence[dict[str, Any]], own_size: int, args: Namespace) -> None:
    """JSON and plot of what is done so far."""
    held = dict(
        config=args.config, checkpoint=args.checkpoint, config_size=own_size, results=results
    )
    write_atomically(args.out / 'resolutions.json', (json.dumps(held, indent=1) + '\n').encode())
    draw(results, own_size, args.out / 'resolutions.png')


def main(argv: Sequence[str] | None = None) -> None:
    """Test at every size; what is done is written after each."""
    parser = ToolParser('Test one checkpoint on images of several sizes, without training.')
    parser.add_checkpoint()
    parser.add_argument(
        '--sizes',
        nargs='+',
        type=int,
        default=list(SIZES),
        metavar='N',
        help='the side of the crop, or the short edge of the resized image, in pixels; all other '
        'sizes of the pipeline and the windows of a sliding test keep their ratio to it '
        f'(default: {" ".join(map(str, SIZES))})',
    )
    parser.add_out('the results')
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if min(args.sizes) < 1:
        raise UsageError(f'--sizes takes numbers from 1 on; got {min(args.sizes)}')
    needs = ('model', 'test_dataloader', 'test_cfg', 'test_evaluator')
    cfg, _ = prepare(args, 'testing', *needs, splits=['test'])
    sizes = sorted(set(args.sizes))
    set_resolution(copy.deepcopy(cfg), sizes[0], args.config)  # fails before anything is built
    own_size = resolution(pipeline_owner(cfg.test_dataloader.dataset, 'testing').pipeline)

    results: list[dict[str, Any]] = []
    for size in sizes:
        results.append(test_at(cfg, size, args))
        write(results, own_size, args)
    print(to_markdown(results, own_size))
    print(f'results: {args.out}/resolutions.json, {args.out}/resolutions.png')


if __name__ == '__main__':
    sys.exit(run_tool(main))
