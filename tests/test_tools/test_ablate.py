"""Ablations on one budget: rows, what each trains, what is kept, and what is written."""

import json
import re
from pathlib import Path

import pytest
from mmengine.config import Config

from mmvim.cli.metafile import entry_of
from mmvim.cli.run_tool import run_tool
from mmvim.datasets.patterns import PatternsSpec, generate
from mmvim.models import VisionMamba

pytest.importorskip('mmpretrain')

ROOT = Path(__file__).parents[2]
TABLES = ('direction', 'design')


@pytest.fixture
def ablate(monkeypatch, tmp_path):
    """The tool, its data small; what it would train is recorded, and logs ever better figures."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools' / 'demos'))
    monkeypatch.chdir(tmp_path)
    import ablate as module
    import common

    generate(common.DATA, PatternsSpec(train=16, val=8, size=64, layouts=('imagefolder',)))
    commands = []

    def run(*command):
        commands.append([str(word) for word in command])
        train = Path(command[command.index('--work-dir') + 1])
        folder = train / f'{len(commands)}' / 'vis_data'
        folder.mkdir(parents=True)
        top1 = 50 + len(commands)
        entries = [{'step': 1, 'loss': 2.0}, {'step': 1, 'accuracy/top1': 12.5}]
        entries.append({'step': 2, 'accuracy/top1': top1})
        (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, entries)))
        (train / 'last_checkpoint').write_text(str(train / 'iter_2.pth'))

    monkeypatch.setattr(module, 'begin', lambda: None)
    monkeypatch.setattr(module, 'commands', commands, raising=False)
    monkeypatch.setattr(module, 'real_run', common.run, raising=False)
    monkeypatch.setattr(common, 'run', run)
    return module


def options(command):
    return dict(word.split('=', 1) for word in command[command.index('--cfg-options') + 1 :])


def test_rows_are_those_of_the_papers_configs(ablate):
    """Each has the one choice of its config; the other is fixed in the whole table."""
    names = {table: [row.name for row in ablate.ROWS if row.table == table] for table in TABLES}
    assert names['direction'] == list(VisionMamba.DIRECTIONS)
    assert len(set(names['design'])) == 5
    for row in [row for row in ablate.ROWS if row.table in TABLES]:
        model = Config.fromfile(ROOT / row.config).model
        for key, value in (option.split('=') for option in row.options):
            _, part, name = key.split('.')
            assert model[part].get(name) == value, row
        if row.table == 'design':
            assert model.backbone.get('direction') == 'ssm_conv'
        else:
            assert model.backbone.out_type == 'avg_featmap'


def test_backbones_differ_in_nothing_else(ablate):
    rows = [row for row in ablate.ROWS if row.table == 'backbone']
    types = ['mmvim.VisionMamba', 'mmvim.VMamba', 'VisionTransformer', 'ResNet']
    configs = [Config.fromfile(ROOT / row.small) for row in rows]
    assert [cfg.model.backbone.pop('type') for cfg in configs] == types
    for row, cfg in zip(rows, configs):
        assert not row.options and row.small.endswith(f'{row.name}_1xb16-1150_patterns-128x128.py')
        cfg.model.pop('backbone')
        cfg.model.head.pop('in_channels')
        for key in ('constructor', 'paramwise_cfg'):  # of a ResNet that does not tell depths
            cfg.optim_wrapper.pop(key, None)
        assert cfg.to_dict() == configs[0].to_dict()
    costs = [entry_of(ROOT / row.small)['Metadata']['FLOPs'] for row in rows]
    assert max(costs) < 2 * min(costs)


def test_every_row_of_the_paper_is_trained_once_a_seed(ablate, capsys):
    assert run_tool(ablate.main, ['--out', 'out', '--seeds', '0', '7']) == 0
    out = Path('out')
    rows = json.loads((out / 'ablation.json').read_text())['rows']
    assert [(row['table'], row['name']) for row in rows] == [row[:2] for row in ablate.ROWS]
    assert len(ablate.commands) == 2 * (6 + 5 + 4)
    # Each command changes the one choice of its row, and gives the seed.
    for number, command in enumerate(ablate.commands):
        seed = '07'[number % 2]
        own = dict(option.split('=') for option in ablate.ROWS[number // 2].options)
        assert command[1] == ablate.ROWS[number // 2].small
        assert options(command) == {**own, 'randomness.seed': seed}
        # The last validation counts.
        assert rows[number // 2]['patterns_top1'][seed] == 51 + number
    text = (out / 'ablation.md').read_text()
    assert '| middle class token | 76.1 |' in text
    assert re.search(r'\| none \| 73\.2 \| 32\.3 \| 51\.5 ± 0\.7 \|', text)
    assert re.search(r'\| sequence \| - \| - \| ', text)
    assert text.count('patterns, not ImageNet') == 4
    size = entry_of(ROOT / ablate.ROWS[12].small)['Metadata']
    cells = f'{size["Parameters"]:,} | {size["FLOPs"] / 1e6:.1f}'
    assert f'| vmamba-nano | {cells} | 75.5 ± 0.7 |' in text
    assert '8 validation images: the standard error is up to 17.7 points' in text
    assert text.index('| none |') < text.index('| block |') < text.index('| ssm_conv |')
    assert (out / 'ablation.png').read_bytes().startswith(b'\x89PNG')
    assert 'patterns, not ImageNet' in capsys.readouterr().out.replace('\n', ' ')


def test_finished_trainings_are_kept_and_others_run_again(ablate):
    argv = ['--out', 'out', '--rows', 'none']
    assert run_tool(ablate.main, argv) == 0
    assert run_tool(ablate.main, argv) == 0
    assert len(ablate.commands) == 1
    # Another budget is another training.
    argv += ['--cfg-options', 'train_cfg.max_iters=300']
    assert run_tool(ablate.main, argv) == 0
    assert len(ablate.commands) == 2
    assert options(ablate.commands[-1])['train_cfg.max_iters'] == '300'


def test_a_row_that_no_table_has_is_refused(ablate, capsys):
    assert run_tool(ablate.main, ['--rows', 'backward']) == 2
    message = capsys.readouterr().err
    assert "invalid choice: 'backward'" in message and 'double class token' in message
    assert not ablate.commands


def test_trains_for_real(ablate, tmp_path, monkeypatch):
    """Two iterations on 16 pictures through the tool of training, of a design and of VMamba."""
    import common

    monkeypatch.setattr(common, 'run', ablate.real_run)
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    loaders = ('train_dataloader', 'val_dataloader')
    changes = [f'{loader}.num_workers=0' for loader in loaders]
    changes += [f'{loader}.persistent_workers=False' for loader in loaders]
    argv = ['--out', 'out', '--rows', 'double class token', 'vmamba-nano']
    argv += ['--cfg-options', *changes]
    argv += ['train_cfg.max_iters=2', 'train_cfg.val_interval=2']
    assert run_tool(ablate.main, argv) == 0
    rows = json.loads(Path('out/ablation.json').read_text())['rows']
    published = [(row['name'], row['paper']['top1']) for row in rows]
    assert published == [('double class token', 74.3), ('vmamba-nano', None)]
    for row in rows:
        assert row['patterns_top1']['0'] in [12.5 * n for n in range(9)]
