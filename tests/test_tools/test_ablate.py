"""Ablations on one budget: rows, what each trains, what is kept, and what is written."""

import json
import re
from pathlib import Path

import pytest
from mmengine.config import Config

from mmvim.cli.run_tool import run_tool
from mmvim.datasets.patterns import PatternsSpec, generate
from mmvim.models import VisionMamba

pytest.importorskip('mmpretrain')


@pytest.fixture
def ablate(monkeypatch, tmp_path):
    """The tool, its data small; what it would train is recorded, and logs ever better figures."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / 'tools' / 'demos'))
    import ablate as module

    data = tmp_path / 'patterns'
    generate(data, PatternsSpec(train=16, val=8, size=64, layouts=('imagefolder',)))
    commands = []

    def run(*command):
        commands.append([str(word) for word in command])
        folder = Path(command[command.index('--work-dir') + 1]) / '1' / 'vis_data'
        folder.mkdir(parents=True)
        top1 = 50 + len(commands)
        entries = [{'step': 1, 'loss': 2.0}, {'step': 1, 'accuracy/top1': 12.5}]
        entries.append({'step': 2, 'accuracy/top1': top1})
        (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, entries)))

    monkeypatch.setattr(module, 'DATA', data)
    monkeypatch.setattr(module, 'make_data', lambda: None)
    monkeypatch.setattr(module, 'commands', commands, raising=False)
    monkeypatch.setattr(module, 'real_run', module.run, raising=False)
    monkeypatch.setattr(module, 'run', run)
    return module


def options(command):
    return dict(word.split('=', 1) for word in command[command.index('--cfg-options') + 1 :])


def test_every_row_of_the_paper_is_trained_once_a_seed(ablate, tmp_path, capsys):
    out = tmp_path / 'out'
    assert run_tool(ablate.main, ['--out', str(out), '--seeds', '0', '7']) == 0
    held = json.loads((out / 'ablation.json').read_text())
    names = {'direction': [], 'design': []}
    for row in held['rows']:
        names[row['table']].append(row['name'])
    assert sorted(names['direction']) == sorted(VisionMamba.DIRECTIONS)
    assert sorted(names['design']) == sorted(ablate.DESIGNS.values())
    assert len(ablate.commands) == 2 * (6 + 5)
    # Each command changes the one choice of its row, and gives the seed.
    small = Config.fromfile(ablate.ROOT / ablate.SMALL)
    for number, command in enumerate(ablate.commands):
        row = held['rows'][number // 2]
        changed = options(command)
        assert changed.pop('randomness.seed') == '07'[number % 2]
        cfg = small.model.copy()
        if row['table'] == 'direction':
            assert changed == {'model.backbone.direction': row['name']}
        else:
            keys = ('model.backbone.cls_token', 'model.backbone.out_type', 'model.head.type')
            assert tuple(changed) == keys
            assert ablate.DESIGNS[tuple(changed.values())] == row['name']
        assert cfg.backbone.arch == 'nano'
        # The last validation counts.
        assert row['patterns_top1']['07'[number % 2]] == 51 + number
    text = (out / 'ablation.md').read_text()
    assert '| middle class token | 76.1 |' in text
    assert re.search(r'\| none \| 73\.2 \| 32\.3 \| 51\.5 ± 0\.7 \|', text)
    assert re.search(r'\| sequence \| - \| - \| ', text)
    assert text.count('patterns, not ImageNet') == 3
    assert '8 validation images: the standard error is up to 17.7 points' in text
    assert text.index('| none |') < text.index('| block |') < text.index('| ssm_conv |')
    assert (out / 'ablation.png').read_bytes().startswith(b'\x89PNG')
    assert 'patterns, not ImageNet' in capsys.readouterr().out.replace('\n', ' ')


def test_finished_trainings_are_kept_and_others_run_again(ablate, tmp_path):
    config = ablate.FAMILY.format('-none')
    argv = [config, '--out', str(tmp_path / 'out')]
    assert run_tool(ablate.main, argv) == 0
    assert run_tool(ablate.main, argv) == 0
    assert len(ablate.commands) == 1
    # Interrupted: no result yet, but what the training left stays, and it resumes.
    folder = tmp_path / 'out' / 'direction-none' / 'seed-0'
    (folder / 'result.json').unlink()
    checkpoint = folder / 'train' / 'epoch_1.pth'
    checkpoint.touch()
    (folder / 'train' / '1').rename(folder / 'train' / '0')
    assert run_tool(ablate.main, argv) == 0
    assert len(ablate.commands) == 2 and '--resume' in ablate.commands[-1]
    assert checkpoint.exists()
    # Another budget is another training.
    assert run_tool(ablate.main, [*argv, '--cfg-options', 'train_cfg.max_iters=300']) == 0
    assert len(ablate.commands) == 3 and not checkpoint.exists()
    assert options(ablate.commands[-1])['train_cfg.max_iters'] == '300'
    # Other data likewise.
    manifest = ablate.DATA / 'patterns.json'
    manifest.write_text(manifest.read_text().replace('"seed": 0', '"seed": 1'))
    assert run_tool(ablate.main, [*argv, '--cfg-options', 'train_cfg.max_iters=300']) == 0
    assert len(ablate.commands) == 4


def test_a_config_outside_the_tables_is_refused(ablate, tmp_path, capsys):
    config = tmp_path / 'other.py'
    base = ablate.ROOT / ablate.FAMILY.format('-none')
    config.write_text(f"_base_ = '{base}'\nmodel = dict(backbone=dict(direction='ssm_conv', "
                      "out_type='raw'))\n")  # fmt: skip
    assert run_tool(ablate.main, [str(config), '--out', str(tmp_path / 'out')]) == 1
    assert 'directions are compared with a mean pool' in capsys.readouterr().err
    assert not ablate.commands


def test_trains_for_real(ablate, tmp_path, monkeypatch):
    """Two iterations on 16 pictures through the tool of training, from another folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ablate, 'run', ablate.real_run)
    loaders = ('train_dataloader', 'val_dataloader')
    changes = [f'{loader}.dataset.data_root={ablate.DATA}/imagefolder' for loader in loaders]
    changes += [f'{loader}.num_workers=0' for loader in loaders]
    changes += [f'{loader}.persistent_workers=False' for loader in loaders]
    argv = [
        '--out',
        'out',
        '--cfg-options',
        'train_cfg.max_iters=2',
        'train_cfg.val_interval=2',
        *changes,
    ]
    assert run_tool(ablate.main, [ablate.FAMILY.format('-double-token'), *argv]) == 0
    (row,) = json.loads((tmp_path / 'out' / 'ablation.json').read_text())['rows']
    assert (row['name'], row['paper']['top1']) == ('double class token', 74.3)
    assert row['patterns_top1']['0'] in [12.5 * n for n in range(9)]
