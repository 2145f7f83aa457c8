"""tools/reproduce.py on small configs: what runs, what is kept, what is refused, what is shown."""

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.utils import ManagerMixin
from repository import CONFIGS, ROOT, TOOLS, load_script

from mmvim.cli.metafile import entry_of
from mmvim.cli.run_tool import run_tool

PLOTTED = "\nvisualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])\n"
INTERRUPTED = f"""
custom_hooks = [dict(type='InterruptHook', at=2, number={int(signal.SIGTERM)})]
"""
README = '# Toys\n\nbefore\n\n<!-- results of toys -->\n<!-- end of results -->\n\nafter\n'
ENTRY = {'Name': 'linear', 'Metadata': {'Training Data': 'Points'}}


def module(name: str) -> ModuleType:
    return importlib.import_module(f'reproduction.{name}')


def forget() -> None:
    """mmengine keeps runs by experiment and second: a fresh process has none."""
    kinds = [ManagerMixin]
    for kind in kinds:
        kinds += kind.__subclasses__()
        kind._instance_dict.clear()


@pytest.fixture
def project(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository with a table ``toys`` of one row; trainings run in this process."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.syspath_prepend(str(TOOLS))
    tables = module('tables')
    from demos import interruptible

    (tmp_path / 'tools').symlink_to(TOOLS)
    folder = tmp_path / 'configs' / 'toys'
    folder.mkdir(parents=True)
    (folder / 'linear.py').write_text(toy.read_text() + PLOTTED)
    (folder / 'README.md').write_text(README)
    (folder / 'metafile.yml').write_text('# Toys.\n' + yaml.safe_dump({'Models': [ENTRY]}))
    monkeypatch.setitem(tables.TABLES, 'toys', tables.Table({'toys': ''}, epoch=8))
    for name in ('tables', 'training', 'report'):
        monkeypatch.setattr(module(name), 'ROOT', tmp_path)

    def in_process(command: list[str], cwd: Path = tmp_path, **_: Any) -> int:
        forget()
        os.chdir(cwd)
        try:
            return run_tool(load_script(Path(command[1])).main, command[2:])
        except SystemExit as error:
            return int(str(error.code))
        finally:
            os.chdir(tmp_path)

    monkeypatch.setattr(interruptible, 'run_apart', in_process)
    monkeypatch.setattr(interruptible, 'hold', lambda: None)
    yield tmp_path
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), handlers):
        signal.signal(number, handler)


@pytest.fixture
def run(project: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run the tool in the project."""
    tool = load_script(TOOLS / 'reproduce.py')
    tool.ROOT = project

    def run_in_process(*argv: object) -> SimpleNamespace:
        capfd.readouterr()
        code = run_tool(tool.main, [str(word) for word in argv])
        out, err = capfd.readouterr()
        said = [line for line in err.splitlines() if line.startswith('error: ')]
        assert 'Traceback' not in err
        return SimpleNamespace(code=code, out=out, err=err, sentence=said[-1] if said else '')

    return run_in_process


def results(out: str = 'work_dirs/reproduce/toys') -> dict[str, Any]:
    return json.loads(Path(out, 'results.json').read_text())


def test_trains_tests_and_keeps_what_is_finished(run, project):
    outcome = run('toys', '--seeds', '0', '3')
    assert outcome.code == 0, outcome.err
    (row,) = results()['rows']
    assert row['name'] == 'linear' and row['config'] == 'configs/toys/linear.py'
    assert row['parameters'] == 2 + 2 + 2 + 1
    assert [one['seed'] for one in row['runs']] == [0, 3]
    for one in row['runs']:
        assert one['iterations'] == 4 and list(one['metrics']) == ['toy/mean']
        assert one['cpu_minutes'] is not None and one['gpu_minutes'] is None
        assert one['command'] == (
            'python tools/train.py configs/toys/linear.py --work-dir work_dirs/reproduce/toys/'
            f'linear/seed-{one["seed"]}/train --resume --cfg-options '
            f'randomness.seed={one["seed"]}'
        )
    first, second = (one['metrics']['toy/mean'] for one in row['runs'])
    assert first != second
    text = Path('work_dirs/reproduce/toys/results.md').read_text()
    assert re.search(r'\| `linear` \| 0\.00 M \| 4 \| 0, 3 \| -?\d\.\d ± \d\.\d \|', text)
    assert Path('work_dirs/reproduce/toys/curves.png').read_bytes().startswith(b'\x89PNG')

    assert outcome.out.count('\n$ python tools/') == 4
    again = run('toys', '--seeds', '0', '3')
    assert again.code == 0 and '\n$ python tools/' not in again.out
    assert results()['rows'] == [row]

    # Another test is another result of the same training.
    config = project / 'configs' / 'toys' / 'linear.py'
    config.write_text(config.read_text() + "test_dataloader['batch_size'] = 4\n")
    once_more = run('toys', '--seeds', '0', '3')
    assert re.findall(r'\n\$ python tools/(\w+)', once_more.out) == ['test', 'test']


def test_test_only_leaves_alone_what_is_not_trained(run, project):
    assert run('toys', '--rows', 'linear', '--seeds', '0').code == 0
    outcome = run('toys', '--test-only', '--seeds', '0', '1')
    assert outcome.code == 0 and 'tools/train.py' not in outcome.out
    assert [one['seed'] for one in results()['rows'][0]['runs']] == [0]
    assert not (project / 'work_dirs/reproduce/toys/linear/seed-1').exists()
    text = Path('work_dirs/reproduce/toys/results.md').read_text()
    assert '* `linear` was not run: seed 1 is not trained yet' in text


def test_rows_of_other_commands_stay(run, project):
    folder = project / 'configs' / 'toys'
    shutil.copy(folder / 'linear.py', folder / 'again.py')
    for rows, expected in (['linear'], ['linear']), (['a*'], ['again', 'linear']):
        assert run('toys', '--rows', *rows).code == 0
        assert [row['name'] for row in results()['rows']] == expected


def test_an_interrupted_training_goes_on(run, project):
    config = project / 'configs' / 'toys' / 'linear.py'
    text = config.read_text().replace("['toy_task']", "['toy_task', 'noisy_task']")
    config.write_text(text + INTERRUPTED)
    with pytest.raises(SystemExit) as ended:
        run('toys')
    assert ended.value.code == 128 + signal.SIGTERM
    train = project / 'work_dirs/reproduce/toys/linear/seed-0/train'
    assert (train / 'interrupted.pth').is_file() and not (train / 'epoch_1.pth').is_file()
    assert run('toys').code == 0
    assert (train / 'epoch_1.pth').is_file() and results()['rows'][0]['runs'][0]['iterations'] == 4


SCRIPT = """
import sys
from pathlib import Path

sys.path.insert(0, str(Path('tools').resolve()))
import reproduce
from mmvim.cli.run_tool import run_tool
from reproduction import report, tables, training

for module in (reproduce, report, tables, training):
    module.ROOT = Path.cwd()
tables.TABLES['toys'] = tables.Table({'toys': ''}, epoch=8)
sys.exit(run_tool(reproduce.main, ['toys']))
"""


@pytest.mark.slow
def test_a_signal_reaches_the_training_and_the_same_command_goes_on(project):
    """Processes of their own, of which the first alone is signalled."""
    config = project / 'configs' / 'toys' / 'linear.py'
    text = config.read_text().replace('max_epochs=1', 'max_epochs=300')
    config.write_text(text.replace('interval=1)', 'interval=300)'))
    (project / 'script.py').write_text(SCRIPT)
    paths = os.pathsep.join(str(path) for path in (ROOT, ROOT / 'ops', ROOT / 'tests'))
    train = project / 'work_dirs/reproduce/toys/linear/seed-0/train'
    minutes = []
    for interrupted in (True, False):
        out = project / 'out.txt'
        with open(out, 'w') as file:
            process = subprocess.Popen(
                [sys.executable, 'script.py'],
                env={**os.environ, 'PYTHONPATH': paths},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        while interrupted and 'Epoch(train)' not in out.read_text():
            assert process.poll() is None, out.read_text()
            time.sleep(0.05)
        if interrupted:
            process.terminate()
        code = process.wait(timeout=300)
        held = json.loads((train.parent / 'spent.json').read_text())
        minutes.append(held['cpu_minutes'])
        assert held['gpus'] == 0
        assert code == (128 + signal.SIGTERM if interrupted else 0), out.read_text()
        if interrupted:
            assert 'the same command goes on from there' in out.read_text()
            assert (train / 'interrupted.pth').is_file()
    assert 'Resumed' in out.read_text() or 'resumed' in out.read_text()
    assert minutes[1] > minutes[0] > 0
    (one,) = json.loads((train.parents[2] / 'results.json').read_text())['rows'][0]['runs']
    assert one['iterations'] == 1200 and one['cpu_minutes'] == round(minutes[1], 1)


def test_a_training_of_the_tool_itself_is_taken_as_it_is(run, project):
    train = project / 'work_dirs/reproduce/toys/linear/seed-5/train'
    options = ['--cfg-options', 'randomness.seed=5', 'train_dataloader.num_workers=0']
    argv = [str(project / 'configs/toys/linear.py'), '--work-dir', str(train), *options]
    assert run_tool(load_script(TOOLS / 'train.py').main, argv) == 0
    saved = (train / 'epoch_1.pth').stat().st_mtime_ns
    assert run('toys', '--seeds', '5').code == 0
    assert (train / 'epoch_1.pth').stat().st_mtime_ns == saved
    # Nobody measured the time of the processors.
    assert results()['rows'][0]['runs'][0]['cpu_minutes'] is None

    config = project / 'configs/toys/linear.py'
    config.write_text(config.read_text().replace('lr=0.125', 'lr=0.5'))
    outcome = run('toys', '--seeds', '5')
    assert outcome.code == 1 and 'nothing can be run here' in outcome.sentence
    assert 'optim_wrapper.optimizer.lr is 0.125 there and 0.5 in' in outcome.out


def test_rows_that_cannot_run_are_listed_and_the_others_run(run, project):
    folder = project / 'configs' / 'toys'
    text = (folder / 'linear.py').read_text()
    (folder / 'half.py').write_text(text.replace("'OptimWrapper'", "'AmpOptimWrapper'"))
    (folder / 'started.py').write_text(text + "load_from = 'checkpoints/none.pth'\n")
    outcome = run('toys')
    assert outcome.code == 0
    lines = re.findall('^not runnable here: (.*?): (.*)$', outcome.out, re.MULTILINE)
    said = dict(lines)
    assert set(said) == {'half', 'started'}
    assert 'needs a GPU' in said['half']
    assert 'checkpoints/none.pth does not exist' in said['started']
    assert '--data-root weights=PATH' in said['started']
    assert [row['name'] for row in results()['rows']] == ['linear']
    text = Path('work_dirs/reproduce/toys/results.md').read_text()
    assert '* `half` was not run: mixed precision' in text
    assert '* `started` was not run: checkpoints/none.pth' in text


def test_a_training_that_fails_does_not_stop_the_others(run, project):
    folder = project / 'configs' / 'toys'
    broken = (folder / 'linear.py').read_text().replace('width=2', 'width=2, nan_after=0')
    (folder / 'broken.py').write_text(broken)
    outcome = run('toys')
    assert outcome.code == 1
    assert [row['name'] for row in results()['rows']] == ['linear']
    assert 'failed: broken, seed 0' in outcome.err
    # Nothing was saved that a mended config could not go on from.
    (folder / 'broken.py').write_text((folder / 'linear.py').read_text())
    outcome = run('toys', '--rows', 'broken')
    assert outcome.code == 0, outcome.err


@pytest.fixture
def scenes(project: Path, segmentation: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's row is a segmentor, whose images are not where the config says."""
    tables = module('tables')
    monkeypatch.setitem(tables.PLACES, 'scenes', tables.Place('scenes', 'draw them'))
    (project / 'configs' / 'toys' / 'linear.py').write_text(segmentation.read_text())
    (project / 'scenes').rename(project / 'elsewhere')
    return project


def test_segmentation_from_other_data_roots_is_measured_and_copied(run, scenes):
    assert run('toys').code == 1
    outcome = run('toys', '--data-root', 'scenes=elsewhere')
    assert outcome.code == 0, outcome.err
    (row,) = results()['rows']
    assert set(row['runs'][0]['metrics']) == {'mIoU', 'mAcc', 'aAcc'}
    assert 'elsewhere' not in json.dumps(results())
    assert run('toys', '--copy').code == 0
    folder = scenes / 'configs' / 'toys'
    assert json.loads((folder / 'results.json').read_text()) == {'toys': results()}
    metafile = (folder / 'metafile.yml').read_text()
    assert metafile.startswith('# Toys.\n')
    (model,) = yaml.safe_load(metafile)['Models']
    (entry,) = model['Results']
    assert entry['Task'] == 'Semantic Segmentation' and entry['Dataset'] == 'Points'
    assert entry['Metrics'] == row['runs'][0]['metrics']
    assert module('report').disagreements(folder) == []


def test_dry_run_checks_and_estimates_alone(run, scenes):
    outcome = run('toys', '--dry-run', '--out', 'out')
    assert outcome.code == 0 and not Path('out').exists()
    assert 'scenes does not exist (draw them)' in outcome.out
    assert '--data-root scenes=PATH' in outcome.out
    # A step was timed on synthetic images, without the data.
    (line,) = (line for line in outcome.out.splitlines() if line.startswith('│ linear'))
    _, trainings, *costs = (cell.strip() for cell in line.strip('│').split('│'))
    assert trainings == '1', outcome.out
    assert all(re.fullmatch(r'\d+\.\d', cost) for cost in costs), outcome.out


@pytest.mark.parametrize(
    'config',
    [
        'vim-nano_upernet_1xb8-900_patterns-128x128.py',
        'vim-nano_mask-rcnn_1xb8-600_patterns-128x128.py',
        'vim-nano_1xb16-1150_patterns-128x128.py',
    ],
)
def test_costs_of_every_task(project, config):
    for library in ('mmseg', 'mmdet', 'mmpretrain'):
        pytest.importorskip(library)
    cfg = Config.fromfile(CONFIGS / 'demo' / config)
    found = module('cost').cost(cfg, images=7200, timed=True)
    about = entry_of(CONFIGS / 'demo' / config)['Metadata']
    assert not found.note and found.parameters == about['Parameters']
    # The metafile counts multiply-accumulates of a forward pass, a detector's with as many regions
    # as its test allows: 100 boxes and 20 masks, where 48 and 12 are trained.
    operations = 3 * 2 * about['FLOPs'] * 7200
    ratio = found.gpu_hours / (operations / (0.3 * 19.5e12) / 3600)
    assert 0.5 < ratio < 0.7 if 'rcnn' in config else ratio == pytest.approx(1)
    assert found.hours > 0 and found.fixed == pytest.approx(16 * found.parameters / 1e9)
    # At least the image in float32 is kept, and less than a hundred thousand numbers a pixel.
    pixels = 3 * 128 * 128
    assert 4 * pixels < found.kept * 1e9 < 1e5 * 4 * pixels
    assert module('cost').cost(cfg, 7200, timed=False).hours is None


def sample(*miou: float) -> dict[str, Any]:
    runs = [
        dict(
            seed=seed,
            metrics={'mIoU': value, 'aAcc': 80.0},
            iterations=100,
            minutes=10.0,
            cpu_minutes=None if seed else 12.0,
            gpu_minutes=None,
            command='python tools/train.py',
        )
        for seed, value in enumerate(miou)
    ]
    row = dict(name='linear', config='configs/toys/linear.py', parameters=260_000, runs=runs)
    machine = dict(cpu='a CPU', cores=2)
    return dict(table='toys', command='python tools/reproduce.py toys', machine=machine, rows=[row])


def test_measured_stands_beside_published(project):
    folder = project / 'configs' / 'toys'
    paper = [dict(Task='Semantic Segmentation', Dataset='Points', Metrics={'mIoU (paper)': 41.0})]
    models = [dict(ENTRY, Results=paper)]
    (folder / 'metafile.yml').write_text(yaml.safe_dump(dict(Models=models)))
    text = module('report').to_markdown(sample(39.0, 41.0))
    assert '| mIoU | mIoU (paper) | mIoU, difference | aAcc | CPU min | wall min |' in text
    row = '| `linear` | 0.26 M | 100 | 0, 1 | 40.0 ± 1.4 | 41.0 | -1.0 | 80.0 ± 0.0 | 12.0 | 10.0 |'
    assert row in text and '20 in all' in text
    (model,) = module('report').shown_in(folder, {'toys': sample(39.0, 41.0)})[1]['Models']
    assert model['Results'][1:] == paper
    assert model['Results'][0]['Metrics'] == {'mIoU': 40.0, 'aAcc': 80.0}


@pytest.mark.parametrize(
    'file, old, new',
    [
        ('README.md', '40.0', '44.0'),
        ('metafile.yml', 'mIoU: 40.0', 'mIoU: 44.0'),
        ('results.json', '39.0', '43.0'),
    ],
)
def test_a_changed_figure_is_found(project, file, old, new):
    folder, report = project / 'configs' / 'toys', module('report')
    assert report.copy(sample(39.0, 41.0)) == [folder]
    assert report.disagreements(folder) == []
    assert old in (folder / file).read_text()
    (folder / file).write_text((folder / file).read_text().replace(old, new))
    assert report.disagreements(folder)


@pytest.mark.parametrize('file', sorted(CONFIGS.glob('*/results.json')), ids=str)
def test_readmes_and_metafiles_show_the_results(monkeypatch, file):
    monkeypatch.syspath_prepend(str(TOOLS))
    assert module('report').disagreements(file.parent) == []


def test_a_table_without_an_end_is_refused(run, project):
    out = project / 'work_dirs' / 'reproduce' / 'toys'
    out.mkdir(parents=True)
    (out / 'results.json').write_text(json.dumps(sample(40.0)))
    readme = project / 'configs' / 'toys' / 'README.md'
    readme.write_text(README.replace('<!-- end of results -->', ''))
    assert 'README.md needs the line <!-- end' in run('toys', '--copy').sentence
    assert not readme.with_name('results.json').exists()


def test_tables_share_folders_and_rows_of_a_table_lie_in_several(project):
    """As ADE20K's do, in the folders of UperNet and VMamba."""
    report, folders = module('report'), [project / 'configs' / name for name in ('toys', 'others')]
    shutil.copytree(*folders)
    (folders[1] / 'README.md').write_text('# Others\n')
    rows = [
        dict(sample(40.0)['rows'][0], config=f'configs/{name}/linear.py')
        for name in ('toys', 'others')
    ]
    assert report.copy(dict(sample(), rows=rows)) == folders
    assert report.copy(dict(sample(), table='more', rows=rows[1:])) == folders[1:]
    for folder, tables in zip(folders, (['toys'], ['toys', 'more'])):
        assert list(json.loads((folder / 'results.json').read_text())) == tables
        text = (folder / 'README.md').read_text()
        assert re.findall('<!-- results of (.*) -->', text) == tables
        assert text.count('| `linear` |') == len(tables)
        assert report.disagreements(folder) == []


@pytest.mark.parametrize(
    'argv, said',
    [
        (['camvit'], 'there is no table camvit: the tables are camvid, nuclei'),
        (['toys', '--data-root', 'camvit=.'], '--data-root camvit=…: the names are camvid'),
        (['toys', '--data-root', 'camvid=nowhere'], 'there is no such folder'),
        (['toys', '--rows', 'vit*'], '--rows vit* fits none of linear'),
        (['toys', '--gpus', '0'], '--gpus'),
        (['toys', '--gpus', '1', '--launcher', 'slurm'], 'not allowed with'),
        (['toys', '--launcher', 'slurm'], 'needs srun, and PARTITION'),
        (['toys', '--launcher', 'pytorch'], 'invalid choice'),
    ],
)
def test_what_is_misspelt_or_contradicts_is_refused(run, monkeypatch, argv, said):
    monkeypatch.delenv('PARTITION', raising=False)
    outcome = run(*argv)
    assert outcome.code == 2 and said in outcome.sentence


def test_what_is_not_there_cannot_be_copied(run):
    assert 'run `python tools/reproduce.py toys` first' in run('toys', '--copy').sentence


def test_tables_hold_the_papers_figures(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    tables = module('tables')
    names = {table: {row.name for row in tables.rows(table)} for table in tables.TABLES}
    vims = {table: {name for name in names[table] if 'vmamba' not in name} for table in names}
    assert {name for name in vims['ade20k'] if 'as-published' not in name} == {
        f'vim-{size}_upernet_4xb8-60k_ade20k-512x512' for size in ('tiny', 'small')
    }
    assert len(vims['coco']) == 2 and len(vims['imagenet']) == 5
    assert [len(names[t] - vims[t]) for t in ('ade20k', 'coco', 'imagenet')] == [4, 5, 3]
    for table in ('ade20k', 'coco'):  # dense models start from the released classifier
        for row in tables.rows(table):
            assert 'vmamba' not in row.name or 'PretrainedVMamba' in row.options[0]
    assert len(names['patterns']) == 7
    ablation = [row for row in tables.rows('ablation') if '_segmenter_' in row.name]
    assert len(ablation) == 4
    for row in (*ablation, *tables.rows('patterns')):
        assert not row.after or row.after in names['ablation'] | names['patterns'], row
    assert all(row.after for row in ablation)
    for table, most in (('camvid', 3), ('nuclei', 2)):  # the comparison's own, not the long run
        assert sorted(len(row.seeds) for row in tables.rows(table))[-2:] == [1, most]
    # What the metafiles publish is in some table.
    published = {file.stem for file in CONFIGS.glob('*/*.py') if tables.paper_metrics(file)}
    assert published <= set().union(*names.values())


def test_processes_share_the_recipes_batch(run, project, monkeypatch):
    config = project / 'configs' / 'toys' / 'linear.py'
    config.write_text(config.read_text() + 'auto_scale_lr = dict(base_batch_size=6)\n')
    monkeypatch.setenv('PARTITION', 'gpu')
    monkeypatch.setattr(shutil, 'which', lambda name: name)
    commands: list[list[str]] = []
    interruptible = sys.modules['demos.interruptible']
    monkeypatch.setattr(interruptible, 'run_apart', lambda words, **_: commands.append(words) or 1)
    monkeypatch.setenv('GPUS', '3')
    run('toys', '--launcher', 'slurm')
    (command,) = commands
    script = str(project / 'tools' / 'slurm_train.sh')
    assert (
        command[:4] == ['bash', script, 'gpu', 'linear']
        and (ROOT / 'tools/slurm_train.sh').is_file()
    )
    assert command[-1] == 'randomness.seed=0'  # the config's batch of two is a third of six
    monkeypatch.setenv('GPUS', '2')
    run('toys', '--launcher', 'slurm')
    assert commands[-1][-1] == 'train_dataloader.batch_size=3'
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    run('toys', '--gpus', '2')
    script = str(project / 'tools' / 'dist_train.sh')
    assert commands[-1][:4] == ['bash', script, str(config), '2']
    assert commands[-1][-1] == 'train_dataloader.batch_size=3'
    count = len(commands)
    assert '4 GPUs cannot share the 6 images of a step' in run('toys', '--gpus', '4').out
    assert len(commands) == count


def test_a_row_starts_from_the_last_weights_of_another(run, scenes, monkeypatch):
    folder = scenes / 'configs' / 'toys'
    (folder / 'second.py').write_text((folder / 'linear.py').read_text())
    monkeypatch.setitem(module('tables')._AFTER, 'toys/second', 'linear')
    commands: list[list[str]] = []
    interruptible = sys.modules['demos.interruptible']
    monkeypatch.setattr(interruptible, 'run_apart', lambda words, **_: commands.append(words) or 1)
    run('toys', '--data-root', 'scenes=elsewhere')
    first, second = commands
    checkpoint = f'{scenes}/work_dirs/reproduce/toys/linear/seed-0/train/iter_2.pth'
    assert not any('checkpoint' in word for word in first)
    (option,) = (word for word in second if word.startswith('model.backbone.init_cfg='))
    assert f"'checkpoint': '{checkpoint}'" in option and 'mmvim.PretrainedVim' in option
    outcome = run('toys', '--data-root', 'scenes=elsewhere', '--rows', 'second')
    assert 'it starts from the weights of linear, which does not run' in outcome.out
