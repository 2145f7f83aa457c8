"""The paper's ablations on the patterns dataset, and other backbones, all on one budget.

The direction or the classification design of each row is given to one small config, which is
trained and validated; other backbones have configs that differ in nothing else. Interrupted, the
same command goes on where it was; what is finished is not run again.
"""

import interruptible  # noqa: F401  # first: what follows takes seconds to import

# isort: split
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common import DATA, ROOT, begin, train
from matplotlib import pyplot as plt

from mmvim.cli.arguments import PlainParser
from mmvim.cli.metafile import entry_of
from mmvim.cli.prepare import make_writable
from mmvim.cli.result_table import paper_metrics
from mmvim.cli.run_tool import run_tool
from mmvim.cli.training_logs import find_logs, read_run
from mmvim.datasets.patterns.generation import MANIFEST

SMALL = 'configs/demo/vim-nano_1xb16-1150_patterns-128x128.py'
CLASSIFIER = 'configs/vim/vim-tiny{}_8xb128-300e_in1k.py'
SEGMENTER = 'configs/segmenter/vim-tiny-{}_segmenter_4xb8-60k_ade20k-512x512.py'
BACKBONES = ('vim-nano', 'vmamba-nano', 'vit-nano', 'resnet18-quarter')
OURS = 'patterns, not ImageNet'


class Row(NamedTuple):
    """One row of a table.

    Attributes:
        table (str): Its table.
        name (str): Of the direction, the design or the backbone.
        config (str): Has the paper's top-1 on ImageNet.
        options (tuple[str, ...]): What gives the small config this direction or design.
        small (str): What is trained.
    """

    table: str
    name: str
    config: str
    options: tuple[str, ...]
    small: str = SMALL


def direction(name: str, suffix: str) -> Row:
    """A row of the table of directions, whose paper's config has ``suffix`` in its name."""
    options = (f'model.backbone.direction={name}',)
    return Row('direction', name, CLASSIFIER.format(suffix), options)


def design(
    name: str, suffix: str, cls_token: str, out_type: str, head: str = 'LinearClsHead'
) -> Row:
    """A row of the table of designs, likewise."""
    backbone = (f'model.backbone.cls_token={cls_token}', f'model.backbone.out_type={out_type}')
    return Row('design', name, CLASSIFIER.format(suffix), (*backbone, f'model.head.type={head}'))


def backbone(name: str, config: str) -> Row:
    """A row of the table of backbones, which compares none of the paper's figures."""
    return Row('backbone', name, config, (), config)


ROWS = [
    direction('none', '-none'),
    direction('sequence', '-sequence'),
    direction('block', '-block'),
    direction('block_published', '-block-published'),
    direction('ssm', '-ssm'),
    direction('ssm_conv', '-mean-pool'),
    design('mean pool', '-mean-pool', 'none', 'avg_featmap'),
    design('max pool', '-max-pool', 'none', 'raw', 'mmvim.MaxPoolClsHead'),
    design('head class token', '-head-token', 'head', 'cls_token'),
    design('double class token', '-double-token', 'double', 'cls_token'),
    design('middle class token', '', 'middle', 'cls_token'),
    *(backbone(name, SMALL.replace('vim-nano', name)) for name in BACKBONES),
]


def to_markdown(entries: Sequence[Mapping[str, Any]], table: str) -> str:
    """One table: the paper's figures, of backbones their sizes instead, and our accuracies.

    Designs have no mIoU: they only classify.
    """

    def of_paper(metric: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda e: '-' if e['paper'][metric] is None else f'{e["paper"][metric]:.1f}'

    def ours(entry: Mapping[str, Any]) -> str:
        values = [*entry['patterns_top1'].values()]
        spread = f' ± {statistics.stdev(values):.1f}' if len(values) > 1 else ''
        return f'{statistics.mean(values):.1f}{spread}'

    columns = {'ImageNet top-1 (paper)': of_paper('top1')}
    if table == 'direction':
        columns['ADE20K mIoU (paper)'] = of_paper('miou')
    elif table == 'backbone':
        columns = {
            'parameters': lambda entry: f'{entry["size"]["Parameters"]:,}',
            'MMACs': lambda entry: f'{entry["size"]["FLOPs"] / 1e6:.1f}',
        }
    columns[OURS] = ours
    lines = [[table, *columns], ['---'] * (len(columns) + 1)]
    lines += [[entry['name'], *(cell(entry) for cell in columns.values())] for entry in entries]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def as_document(
    tables: Mapping[str, Sequence[Mapping[str, Any]]], seeds: Sequence[int], options: Sequence[str]
) -> str:
    """All tables, and how they were made."""
    words = ['python tools/demos/ablate.py', '--seeds', *map(str, seeds)]
    words += ['--cfg-options', *options] if options else []
    # How far a figure of ours may be off by the choice of the validation images alone.
    count = json.loads((DATA / MANIFEST).read_text())['spec']['val']
    text = [
        '# Ablations',
        f'Figures in the columns "{OURS}" are the top-1 in per cent of `{SMALL}` at the end '
        f'of training, with the direction, the design or the backbone of the row; made by '
        f'`{" ".join(words)}`. '
        f'{count} validation images: the standard error is up to {50 / count**0.5:.1f} points.',
    ]
    if len(seeds) > 1:
        text.append(f'Mean and standard deviation over {len(seeds)} seeds.')
    text += [to_markdown(entries, table) for table, entries in tables.items()]
    return '\n\n'.join(text) + '\n'


def draw(tables: Mapping[str, Sequence[Mapping[str, Any]]], file: Path) -> None:
    """Plot our accuracies as bars, one for each row, and the paper's as points over them."""
    figure, axes = plt.subplots(1, len(tables), figsize=(6 * len(tables), 4.4), squeeze=False)
    for axis, (table, entries) in zip(axes.flat, tables.items()):
        names = [entry['name'].replace(' ', '\n') for entry in entries]
        seeds = [[*entry['patterns_top1'].values()] for entry in entries]
        axis.bar(names, [statistics.mean(values) for values in seeds], color='#56b4e9', label=OURS)
        axis.plot(names, seeds, '.', color='#0072b2')
        if table != 'backbone':
            known = [entry['paper']['top1'] or float('nan') for entry in entries]
            axis.plot(names, known, 'D', color='#d55e00', label='ImageNet (paper)')
        axis.set(title=table, ylim=(0, 100), ylabel='top-1 (%)')
        axis.tick_params('x', labelsize=8)
        axis.grid(axis='y', alpha=0.3)
        axis.legend(frameon=False, ncols=2, loc='lower center', bbox_to_anchor=(0.5, -0.33))
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main(argv: Sequence[str]) -> None:
    """Train one row after the other; write Markdown, JSON and the plot, and print the first."""
    parser = PlainParser("The paper's ablations and other backbones on patterns, on one budget.")
    parser.add_argument('--out', default='work_dirs/ablate', help='folder (default: %(default)s)')
    parser.add_argument(
        '--seeds', type=int, nargs='+', default=[0], help='train once with each (default: 0)'
    )
    names = [row.name for row in ROWS]
    parser.add_argument(
        '--rows', nargs='+', default=names, choices=names, help='some of them (default: all)'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='change the small config, for all rows alike: train_cfg.max_iters=500',
    )
    args = parser.parse_args(argv)
    out = make_writable(Path(args.out).resolve(), '--out')
    begin()
    tables: dict[str, list[dict[str, Any]]] = {}
    for row in [row for row in ROWS if row.name in args.rows]:
        folder, top1 = out / f'{row.table}-{row.name}'.replace(' ', '-'), {}
        for seed in args.seeds:
            print(f'\n{row.table} {row.name}, seed {seed}', flush=True)
            options = (*args.cfg_options, *row.options, f'randomness.seed={seed}')
            training = train(row.small, folder / f'seed-{seed}', *options)
            curves = read_run(find_logs(str(training.folder / 'train'))).curves
            top1[seed] = curves['accuracy/top1'].values[-1]
        dense = SEGMENTER.format(row.name.replace('_', '-'))
        paper = dict(
            top1=paper_metrics(ROOT / row.config).get('Top 1 Accuracy'),
            miou=paper_metrics(ROOT / dense).get('mIoU'),
        )
        about = entry_of(ROOT / row.small)['Metadata']
        size = {key: about[key] for key in ('Parameters', 'FLOPs')}
        entry = dict(table=row.table, name=row.name, paper=paper, size=size, patterns_top1=top1)
        tables.setdefault(row.table, []).append(entry)

    document = as_document(tables, args.seeds, args.cfg_options)
    rows = [entry for entries in tables.values() for entry in entries]
    held = dict(small=SMALL, options=args.cfg_options, rows=rows)
    (out / 'ablation.md').write_text(document)
    (out / 'ablation.json').write_text(json.dumps(held, indent=1) + '\n')
    draw(tables, out / 'ablation.png')
    print(document)
    for suffix in ('md', 'json', 'png'):
        print(out / f'ablation.{suffix}')


if __name__ == '__main__':
    sys.exit(run_tool(main))
