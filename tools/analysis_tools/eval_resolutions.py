"""Test one checkpoint on images of several sizes, without training it again.

Table, JSON and plot of every metric over the image size, as the authors of VMamba compare models.
"""

import copy
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.runner import Runner

from mmvim.analysis.resolutions import resolution, set_resolution
from mmvim.atomic_files import write_atomically
from mmvim.cli.arguments import ToolParser
from mmvim.cli.prepare import prepare
from mmvim.cli.run_tool import run_tool
from mmvim.datasets.checked_loading import check_loading_of_run
from mmvim.datasets.pipelines import pipeline_owner
from mmvim.engine import StrictCheckpointHook
from mmvim.errors import UsageError, UserError, first_line

# Sides at which VMamba (arXiv 2401.10166) is compared, and one beyond.
SIZES = (224, 288, 384, 512, 640, 768, 1024)


@dataclass(frozen=True)
class Result:
    """One test.

    Attributes:
        size (int): Side of the images, see :func:`mmvim.analysis.resolutions.at_resolution`.
        changes (list[str]): What was replaced in the config.
        metrics (dict[str, float]): By name.
    """

    size: int
    changes: list[str]
    metrics: dict[str, float]


def test_at(cfg: Config, size: int, config_path: str, checkpoint: str, out: Path) -> Result:
    """Test at one size through mmengine's runner.

    Raises:
        UserError: If the model does not take images of this size, or memory does not suffice.
    """
    cfg = copy.deepcopy(cfg)
    changes = set_resolution(cfg, size, config_path)
    print(f'{size}: {", ".join(changes)}', file=sys.stderr)
    cfg.work_dir = str(out / str(size))
    # mmengine keeps loggers and visualizers by name for the whole process.
    cfg.experiment_name = f'{Path(config_path).stem}_{size}'
    if cfg.get('visualizer') is not None:
        cfg.visualizer.name = cfg.experiment_name
    runner = Runner.from_cfg(cfg)
    runner.register_hook(StrictCheckpointHook(f'checkpoint {checkpoint}'))
    check_loading_of_run(runner)
    try:
        metrics = runner.test()
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(
            f'the memory of the device does not suffice at size {size}: set --cfg-options '
            'test_dataloader.batch_size=1; the sizes before it are done'
        ) from error
    except ValueError as error:
        raise UserError(f'the test failed at size {size}: {first_line(error)}') from error
    return Result(size, changes, {name: float(value) for name, value in metrics.items()})


def to_markdown(results: Sequence[Result], own_size: int) -> str:
    """One row per size; the size that the config itself tests at is marked."""
    names = list(dict.fromkeys(name for result in results for name in result.metrics))
    lines = [['size', *names], ['---:'] * (len(names) + 1)]
    for result in results:
        own = ' (config)' if result.size == own_size else ''
        numbers = [f'{result.metrics[n]:.2f}' if n in result.metrics else '–' for n in names]
        lines.append([f'{result.size}{own}', *numbers])
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def draw(results: Sequence[Result], own_size: int, file: Path) -> None:
    """Every metric over the image size."""
    figure = Figure(figsize=(6.4, 4.2), layout='constrained')
    axis = figure.add_subplot()
    for name in dict.fromkeys(name for result in results for name in result.metrics):
        points = [(r.size, r.metrics[name]) for r in results if name in r.metrics]
        axis.plot(*zip(*points), marker='o', label=name)
    axis.axvline(own_size, color='grey', linestyle=':', label="the config's size")
    axis.set(xlabel='image size (pixels)', ylabel='metric', xticks=[r.size for r in results])
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    figure.savefig(file, dpi=150)


def write(results: Sequence[Result], own_size: int, about: dict[str, str], out: Path) -> None:
    """Table, JSON and plot of what is done so far."""
    changes = [f'* {result.size}: {", ".join(result.changes)}' for result in results]
    text = [
        f'{about["checkpoint"]} with {about["config"]}, not trained again.\n',
        f'{to_markdown(results, own_size)}\n\nReplaced in the config:\n',
        *changes,
    ]
    write_atomically(out / 'resolutions.md', '\n'.join([*text, '']).encode())
    held = dict(**about, config_size=own_size, results=[asdict(result) for result in results])
    write_atomically(out / 'resolutions.json', (json.dumps(held, indent=1) + '\n').encode())
    draw(results, own_size, out / 'resolutions.png')


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
    sizes, out = sorted(set(args.sizes)), args.out
    set_resolution(copy.deepcopy(cfg), sizes[0], args.config)  # fails before anything is built
    own_size = resolution(pipeline_owner(cfg.test_dataloader.dataset, 'testing').pipeline)

    results: list[Result] = []
    for size in sizes:
        results.append(test_at(cfg, size, args.config, args.checkpoint, out))
        write(results, own_size, dict(config=args.config, checkpoint=args.checkpoint), out)
    print(to_markdown(results, own_size))
    for name in ('md', 'json', 'png'):
        print(out / f'resolutions.{name}')


if __name__ == '__main__':
    sys.exit(run_tool(main))
