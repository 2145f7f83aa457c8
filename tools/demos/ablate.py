"""The paper's ablations on the patterns dataset, all on one budget.

The direction or the classification design of each config is given to one small config, which is
trained and validated. Interrupted, the same command goes on where it was; what is finished is not
run again.
"""

import hashlib
import json
import os
import statistics
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common import DATA, ROOT, make_data, open_work_dir, read_curves, run
from matplotlib import pyplot as plt
from mmengine.config import Config

from mmvim.cli.arguments import PlainParser
from mmvim.cli.config import load_config
from mmvim.cli.prepare import make_writable
from mmvim.cli.result_table import paper_metrics
from mmvim.cli.run_tool import run_tool
from mmvim.datasets.patterns.generation import MANIFEST
from mmvim.errors import UserError
from mmvim.models import VisionMamba

FAMILY = 'configs/vim/vim-tiny{}_8xb128-300e_in1k.py'
ABLATIONS = [
    *('-none', '-sequence', '-block', '-block-published', '-ssm'),
    *('-mean-pool', '-max-pool', '-head-token', '-double-token', ''),
]
SEGMENTER = 'configs/segmenter/vim-tiny-{}_segmenter_4xb8-60k_ade20k-512x512.py'
SMALL = 'configs/demo/vim-nano_1xb16-1150_patterns-128x128.py'

# (cls_token, out_type) of the backbone, type of the head -> the paper's name of the design.
DESIGNS = {
    ('none', 'avg_featmap', 'LinearClsHead'): 'mean pool',
    ('none', 'raw', 'mmvim.MaxPoolClsHead'): 'max pool',
    ('head', 'cls_token', 'LinearClsHead'): 'head class token',
    ('double', 'cls_token', 'LinearClsHead'): 'double class token',
    ('middle', 'cls_token', 'LinearClsHead'): 'middle class token',
}
ORDERS = {'direction': list(VisionMamba.DIRECTIONS), 'design': list(DESIGNS.values())}
# What is fixed in our configs, as in the paper, where the other is varied.
FIXED = {'direction': ('design', 'mean pool'), 'design': ('direction', 'ssm_conv')}
OURS = 'patterns, not ImageNet'


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        table (str): 'direction' or 'design'.
        name (str): Of the direction or the design.
        top1 (float | None): The paper's on ImageNet, in per cent, None where we know none.
        miou (float | None): The paper's on ADE20K, likewise.
        options (tuple[str, ...]): What gives the small config this direction or design.
    """

    table: str
    name: str
    top1: float | None
    miou: float | None
    options: tuple[str, ...]


# Top-1 of every seed.
Results = Mapping[Row, Sequence[float]]


def from_root(path: str) -> str:
    """A path given where the tool was called, as the repository sees it, where trainings run."""
    return os.path.relpath(path, ROOT) if os.path.exists(path) else path


def parse_arguments(argv: Sequence[str]) -> Namespace:
    """The command line."""
    parser = PlainParser("The paper's ablations on the patterns dataset, all on one budget.")
    parser.add_argument(
        'configs',
        nargs='*',
        type=from_root,
        default=[FAMILY.format(name) for name in ABLATIONS],
        help="ablations, run as Python (default: the paper's in configs/vim)",
    )
    parser.add_argument(
        '--small', default=SMALL, type=from_root, help='what is trained (default: %(default)s)'
    )
    parser.add_argument('--out', default='work_dirs/ablate', help='folder (default: %(default)s)')
    parser.add_argument(
        '--seeds', type=int, nargs='+', default=[0], help='train once with each (default: 0)'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='change the small config, for all rows alike: train_cfg.max_iters=500',
    )
    args = parser.parse_args(argv)
    args.out = Path(args.out).resolve()
    return args


def read_rows(config: str) -> list[Row]:
    """The rows that a config has in the paper's tables.

    Raises:
        UserError: If it has none.
    """
    model = load_config(str(ROOT / config)).model
    backbone = model.backbone
    key = (backbone.get('cls_token'), backbone.get('out_type'), model.head.type)
    names = {'direction': backbone.get('direction'), 'design': DESIGNS.get(key)}
    options = {
        'direction': (f'model.backbone.direction={names["direction"]}',),
        'design': (
            f'model.backbone.cls_token={key[0]}',
            f'model.backbone.out_type={key[1]}',
            f'model.head.type={key[2]}',
        ),
    }
    paper = paper_metrics(ROOT / config)
    segmenter = ROOT / SEGMENTER.format(str(names['direction']).replace('_', '-'))
    rows = []
    for table, (other, fixed) in FIXED.items():
        name = names[table]
        if name in ORDERS[table] and names[other] == fixed:
            miou = paper_metrics(segmenter).get('mIoU') if table == 'direction' else None
            rows.append(Row(table, name, paper.get('top-1'), miou, options[table]))
    if not rows:
        raise UserError(
            f'{config} has direction {names["direction"]!r} and the design {key}: directions are '
            f'compared with a {FIXED["direction"][1]}, and with direction '
            f'{FIXED["design"][1]} the designs {list(DESIGNS)}'
        )
    return rows


def train(row: Row, seed: int, small: Config, args: Namespace) -> float:
    """Train and validate the small config, or read what an earlier call found.

    Returns:
        Top-1 at the end, in per cent.
    """
    folder = args.out / f'{row.table}-{row.name}'.replace(' ', '-') / f'seed-{seed}'
    options = [*args.cfg_options, *row.options, f'randomness.seed={seed}']
    ingredients = dict(
        small=hashlib.sha256(small.pretty_text.encode()).hexdigest(),
        data=json.loads((ROOT / DATA / MANIFEST).read_text()),
        options=options,
    )
    open_work_dir(folder, ingredients)
    result = folder / 'result.json'
    if not result.is_file():
        run(
            *('tools/train.py', args.small, '--work-dir', folder / 'train', '--resume'),
            *('--cfg-options', *options),
        )
        top1 = read_curves(folder / 'train').get('accuracy/top1')
        if top1 is None:
            raise UserError(f'{args.small} logs no accuracy/top1: it needs a validation')
        result.write_text(json.dumps({'top-1': top1.values[-1]}))
    value: float = json.loads(result.read_text())['top-1']
    return value


def rows_of(results: Results, table: str) -> list[Row]:
    """Rows of one table in the order of the paper."""
    rows = [row for row in results if row.table == table]
    return sorted(rows, key=lambda row: ORDERS[table].index(row.name))


def to_markdown(results: Results, table: str) -> str:
    """One table, the design's without mIoU: it only classifies."""
    head = [table, 'ImageNet top-1 (paper)', 'ADE20K mIoU (paper)', OURS]
    lines = [head, ['---'] * len(head)]
    for row in rows_of(results, table):
        known = ['-' if value is None else f'{value:.1f}' for value in (row.top1, row.miou)]
        ours = f'{statistics.mean(results[row]):.1f}'
        if len(results[row]) > 1:
            ours += f' ± {statistics.stdev(results[row]):.1f}'
        lines.append([row.name, *known, ours])
    kept = [line if table == 'direction' else [*line[:2], line[3]] for line in lines]
    return '\n'.join(f'| {" | ".join(line)} |' for line in kept)


def as_document(results: Results, args: Namespace) -> str:
    """Both tables, and how they were made."""
    words = ['python tools/demos/ablate.py', '--seeds', *map(str, args.seeds)]
    words += ['--cfg-options', *args.cfg_options] if args.cfg_options else []
    # How far a figure of ours may be off by the choice of the validation images alone.
    count = json.loads((ROOT / DATA / MANIFEST).read_text())['spec']['val']
    text = [
        '# Ablations',
        f'Figures in the columns "{OURS}" are the top-1 in per cent of `{args.small}` at the end '
        f'of training, with the direction or the design of the row; made by `{" ".join(words)}`. '
        f'{count} validation images: the standard error is up to {50 / count**0.5:.1f} points.',
    ]
    if len(args.seeds) > 1:
        text.append(f'Mean and standard deviation over {len(args.seeds)} seeds.')
    text += [to_markdown(results, table) for table in ORDERS if rows_of(results, table)]
    return '\n\n'.join(text) + '\n'


def draw(results: Results, file: Path) -> None:
    """Plot our accuracies as bars, one for each row, and the paper's as points beside them."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.4))
    for axis, table in zip(axes, ORDERS):
        rows = rows_of(results, table)
        means = [statistics.mean(results[row]) for row in rows]
        axis.bar(range(len(rows)), means, color='#56b4e9', label=f'{OURS}')
        for place, row in enumerate(rows):
            axis.plot([place] * len(results[row]), results[row], '.', color='#0072b2')
        known = [(place, row.top1) for place, row in enumerate(rows) if row.top1 is not None]
        if known:
            axis.plot(*zip(*known), 'D', color='#d55e00', label='ImageNet (paper)')
        axis.set_xticks(range(len(rows)), [row.name.replace(' ', '\n') for row in rows])
        axis.set(title=table, ylim=(0, 100), ylabel='top-1 (%)')
        axis.tick_params('x', labelsize=8)
        axis.grid(axis='y', alpha=0.3)
        axis.legend(frameon=False, ncols=2, loc='lower center', bbox_to_anchor=(0.5, -0.33))
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def write(results: Results, args: Namespace) -> None:
    """Write Markdown, JSON and the plot; print the first, and where they are."""
    document = as_document(results, args)
    entries = [
        dict(
            table=row.table,
            name=row.name,
            paper=dict(top1=row.top1, miou=row.miou),
            patterns_top1=dict(zip(map(str, args.seeds), values)),
        )
        for row, values in results.items()
    ]
    held = dict(small=args.small, options=args.cfg_options, rows=entries)
    (args.out / 'ablation.md').write_text(document)
    (args.out / 'ablation.json').write_text(json.dumps(held, indent=1) + '\n')
    draw(results, args.out / 'ablation.png')
    print(document)
    for suffix in ('md', 'json', 'png'):
        print(args.out / f'ablation.{suffix}')


def main(argv: Sequence[str] | None = None) -> None:
    """Read all configs first, then train one after the other."""
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    rows = [row for config in args.configs for row in read_rows(config)]
    small = load_config(str(ROOT / args.small))
    make_writable(args.out, '--out')
    make_data()
    results = {}
    for number, row in enumerate(rows, start=1):
        print(f'\n[{number}/{len(rows)}] {row.table}: {row.name}', flush=True)
        results[row] = [train(row, seed, small, args) for seed in args.seeds]
    write(results, args)


if __name__ == '__main__':
    sys.exit(run_tool(main))
