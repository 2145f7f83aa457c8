"""tools/train.py: its options, and each of its complaints in one sentence."""

import os
import pickle
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from PIL import Image
from repository import load_script

from mmvim.cli.run_tool import run_tool

TOOLS = Path(__file__).parents[2] / 'tools'
Run = Callable[..., Any]


def test_trains_and_writes_to_the_default_work_dir(run: Run, toy: Path) -> None:
    assert run('train', toy).code == 0
    work_dir = toy.parent / 'work_dirs' / toy.stem
    assert (work_dir / 'epoch_1.pth').is_file()
    assert Config.fromfile(work_dir / toy.name).model.type == 'ToyModel'


def test_each_training_of_a_process_writes_its_own_scalars(toy: Path) -> None:
    toy.write_text(
        toy.read_text() + "visualizer = dict(type='Visualizer', name='visualizer', "
        "vis_backends=[dict(type='LocalVisBackend')])\n"
    )
    main = load_script(TOOLS / 'train.py').main  # not `run`, which forgets the visualizers
    for work_dir in ('first', 'second'):
        time.sleep(1)  # the loggers bear the second in their names
        assert run_tool(main, [str(toy), '--work-dir', work_dir]) in (0, None)
        (log,) = Path(work_dir).glob('*/vis_data/scalars.json')
        assert len(log.read_text().splitlines()) == 4


def test_work_dir_argument_wins_over_the_config(run: Run, toy: Path) -> None:
    toy.write_text(toy.read_text() + "work_dir = 'from_config'\n")
    assert run('train', toy, '--work-dir', 'given').code == 0
    assert (toy.parent / 'given' / 'epoch_1.pth').is_file()
    assert not (toy.parent / 'from_config').exists()


def test_cfg_options_reach_the_run(run: Run, toy: Path) -> None:
    options = ['train_cfg.max_epochs=2', 'param_scheduler.0.end=3', 'model.nan_after=None']
    assert run('train', toy, '--work-dir', 'w', '--cfg-options', *options).code == 0
    assert (toy.parent / 'w' / 'epoch_2.pth').is_file()
    dumped = Config.fromfile(toy.parent / 'w' / toy.name)
    assert dumped.param_scheduler[0].end == 3


def test_resume_without_a_path_starts_afresh_and_says_so(run: Run, toy: Path) -> None:
    outcome = run('train', toy, '--work-dir', 'w', '--resume')
    assert outcome.code == 0
    assert 'nothing to resume in w: training starts afresh' in outcome.out


def test_resume_goes_on_from_the_latest_checkpoint(run: Run, toy: Path) -> None:
    assert run('train', toy, '--work-dir', 'w').code == 0
    more = ('--cfg-options', 'train_cfg.max_epochs=2')
    outcome = run('train', toy, '--work-dir', 'w', '--resume', *more)
    assert outcome.code == 0
    assert 'resumed epoch: 1, iter: 4' in outcome.out
    second = torch.load(toy.parent / 'w' / 'epoch_2.pth', weights_only=False)
    assert second['meta']['iter'] == 8


def test_resume_finds_the_checkpoint_of_a_moved_work_dir(run: Run, toy: Path) -> None:
    assert run('train', toy, '--work-dir', 'before').code == 0
    (toy.parent / 'before').rename('after')
    outcome = run(
        'train', toy, '--work-dir', 'after', '--resume', '--cfg-options', 'train_cfg.max_epochs=2'
    )
    assert outcome.code == 0
    assert 'resumed epoch: 1' in outcome.out


def test_resume_from_a_path(run: Run, toy: Path) -> None:
    assert run('train', toy, '--work-dir', 'w').code == 0
    options = ('--work-dir', 'other', '--cfg-options', 'train_cfg.max_epochs=2')
    outcome = run('train', toy, '--resume', 'w/epoch_1.pth', *options)
    assert 'resumed epoch: 1' in outcome.out


def test_resume_refuses_what_cannot_be_resumed(run: Run, toy: Path) -> None:
    outcome = run('train', toy, '--resume', 'absent.pth')
    assert outcome.code == 1
    assert outcome.sentence == 'checkpoint absent.pth does not exist'

    assert run('train', toy, '--work-dir', 'w').code == 0
    full = torch.load('w/epoch_1.pth', weights_only=False)
    torch.save(dict(state_dict=full['state_dict']), 'weights.pth')
    sentence = run('train', toy, '--resume', 'weights.pth').sentence
    assert 'no epoch, iter, optimizer, message_hub' in sentence
    assert 'load_from=weights.pth' in sentence

    options = ('--work-dir', 'w2', '--cfg-options', 'model.width=3')
    sentence = run('train', toy, '--resume', 'w/epoch_1.pth', *options).sentence
    assert 'checkpoint w/epoch_1.pth does not fit the ToyModel' in sentence
    assert '3 keys of another shape (hidden.weight: (2, 1) in the file, (3, 1)' in sentence

    Path('w/last_checkpoint').write_text('/gone/epoch_9.pth')
    sentence = run('train', toy, '--work-dir', 'w', '--resume').sentence
    assert 'names /gone/epoch_9.pth, which does not exist' in sentence


@pytest.mark.parametrize('resume', [(), ('--resume',)])
def test_start_from_what_is_not_there_is_refused(
    resume: tuple[str, ...], run: Run, toy: Path
) -> None:
    options = ('--cfg-options', 'load_from=absent.pth')
    sentence = run('train', toy, '--work-dir', 'w', *resume, *options).sentence
    assert 'absent.pth' in sentence


def test_load_from_is_loud_before_the_first_step(run: Run, toy: Path) -> None:
    assert run('train', toy, '--work-dir', 'w').code == 0
    state = torch.load('w/epoch_1.pth', weights_only=False)['state_dict']
    state['head.weight'] = torch.ones(3, 1)
    torch.save(dict(state_dict={f'model.{key}': value for key, value in state.items()}), 'part.pth')
    outcome = run('train', toy, '--work-dir', 'w2', '--cfg-options', 'load_from=part.pth')
    assert outcome.code == 0
    log = next(Path('w2').rglob('*.log')).read_text()
    said = 'checkpoint part.pth: of another shape, left at their initial values: head.weight.'
    assert 0 < log.index(said) < log.index('Epoch(train)')
    keys = ('conv1.weight', 'layer1.0.conv1.weight', 'fc.weight')
    torch.save(dict.fromkeys(keys, torch.ones(1)), 'other.pth')
    outcome = run('train', toy, '--work-dir', 'w3', '--cfg-options', 'load_from=other.pth')
    assert outcome.code == 1
    assert 'other.pth does not fit the ToyModel' in outcome.sentence
    assert 'whose keys are those of ResNet' in outcome.sentence


def test_an_average_of_the_weights_goes_on_where_it_was(run: Run, toy: Path) -> None:
    """The weights and their average change places in a checkpoint, and back."""
    toy.write_text(toy.read_text() + "custom_hooks = [dict(type='EMAHook', momentum=0.1)]\n")
    whole = ('--cfg-options', 'train_cfg.max_epochs=2')
    assert run('train', toy, '--work-dir', 'whole', *whole).code == 0
    assert run('train', toy, '--work-dir', 'parts').code == 0
    assert run('train', toy, '--work-dir', 'parts', '--resume', *whole).code == 0
    one, other = (torch.load(f'{d}/epoch_2.pth', weights_only=False) for d in ('whole', 'parts'))
    for name in ('state_dict', 'ema_state_dict'):
        assert one[name].keys() == other[name].keys()
        assert all(torch.equal(value, other[name][key]) for key, value in one[name].items())
    assert not torch.equal(
        one['state_dict']['head.weight'], one['ema_state_dict']['module.head.weight']
    )
    start = ('--cfg-options', 'load_from=whole/epoch_2.pth')
    assert run('train', toy, '--work-dir', 'fresh', *start).code == 0


def test_load_from_of_the_config_survives_an_empty_resume(run: Run, toy: Path) -> None:
    assert run('train', toy, '--work-dir', 'w').code == 0
    options = ('--cfg-options', 'load_from=w/epoch_1.pth')
    outcome = run('train', toy, '--work-dir', 'new', '--resume', *options)
    assert 'training starts from the weights of w/epoch_1.pth' in outcome.out
    assert 'Load checkpoint from w/epoch_1.pth' in outcome.out


@pytest.mark.skipif(torch.cuda.is_available(), reason='complains only without an accelerator')
def test_amp_needs_an_accelerator(run: Run, toy: Path) -> None:
    outcome = run('train', toy, '--amp')
    assert outcome.code == 1
    assert 'needs a GPU, but this machine offers cpu only' in outcome.sentence
    in_config = run('train', toy, '--cfg-options', 'optim_wrapper.type=AmpOptimWrapper')
    assert 'needs a GPU' in in_config.sentence


def test_amp_changes_plain_wrappers_only(run: Run, toy: Path) -> None:
    outcome = run('train', toy, '--amp', '--cfg-options', 'optim_wrapper.type=ApexOptimWrapper')
    assert 'optim_wrapper.type=ApexOptimWrapper' in outcome.sentence


def test_auto_scale_lr(run: Run, toy: Path) -> None:
    outcome = run('train', toy, '--auto-scale-lr')
    assert outcome.code == 1
    assert 'auto_scale_lr=dict(base_batch_size=...)' in outcome.sentence
    options = ('--cfg-options', 'auto_scale_lr.base_batch_size=4', 'auto_scale_lr.enable=False')
    assert run('train', toy, '--auto-scale-lr', '--work-dir', 'w', *options).code == 0
    state = torch.load('w/epoch_1.pth', weights_only=False)
    # SGD at 0.125, batch 2 instead of 4.
    assert state['param_schedulers'][0]['base_values'] == [0.125 * 2 / 4]


def test_nan_loss_stops_before_a_checkpoint(run: Run, toy: Path) -> None:
    outcome = run('train', toy, '--work-dir', 'w', '--cfg-options', 'model.nan_after=2')
    assert outcome.code == 1
    assert outcome.sentence.startswith('the loss is nan (loss_fit=nan) at iteration 3: training')
    assert not list(Path('w').glob('*.pth'))


@pytest.mark.parametrize(
    ('argv', 'complaint'),
    [
        ([], 'the following arguments are required: config'),
        (['c.py', '--cfg-option', 'a=1'], 'unrecognized arguments: --cfg-option a=1'),
        (['c.py', '--launcher', 'ssh'], "argument --launcher: invalid choice: 'ssh'"),
        (['--cfg-options', 'a=1', 'c.py'], 'takes KEY=VALUE pairs (c.py has no =; positional'),
        (['c.py', '--cfg-options', 'a=[1,2'], 'do not match'),
    ],
)
def test_bad_arguments_exit_with_2(run: Run, argv: list[str], complaint: str) -> None:
    outcome = run('train', *argv)
    assert outcome.code == 2
    assert complaint in outcome.sentence


def test_launcher_needs_its_environment(
    run: Run, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv('SLURM_PROCID', raising=False)
    sentence = run('train', toy, '--launcher', 'slurm').sentence
    assert '--launcher slurm needs SLURM_PROCID' in sentence


@pytest.mark.skipif(torch.cuda.is_available(), reason='complains only without an accelerator')
def test_nccl_needs_gpus(run: Run, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = dict(RANK='0', WORLD_SIZE='1', LOCAL_RANK='0', MASTER_ADDR='h', MASTER_PORT='29500')
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert (
        'nccl backend needs a GPU per process'
        in run('train', toy, '--launcher', 'pytorch').sentence
    )


def test_work_dir_that_cannot_be_written(run: Run, toy: Path) -> None:
    outcome = run('train', toy, '--work-dir', toy / 'inside_a_file')
    assert outcome.code == 1
    assert re.fullmatch(
        r'the work dir \S+/inside_a_file cannot be written \(Not a directory\): .*',
        outcome.sentence,
    )


def test_unknown_type_is_named(run: Run, toy: Path) -> None:
    sentence = run('train', toy, '--cfg-options', 'model.type=ToyModl').sentence
    assert sentence.startswith('ToyModl is not in the mmengine::model registry. Please check')
    sentence = run('train', toy, '--cfg-options', 'model.type=mmrotate.Thing').sentence
    assert sentence.startswith('mmrotate.Thing is not in the mmengine::model registry')
    option = 'train_dataloader.dataset.type=ToyDat'
    sentence = run('train', toy, '--cfg-options', option).sentence
    assert 'ToyDat is not in the mmengine::dataset registry' in sentence


def test_missing_library_is_named_with_its_package(run: Run, toy: Path) -> None:
    toy.write_text(toy.read_text() + "default_scope = 'mmocr'\n")
    sentence = run('train', toy).sentence
    assert "has default_scope='mmocr', but mmocr is not installed: pip install mmocr" in sentence


def test_a_config_without_a_model_cannot_be_trained(run: Run, toy: Path) -> None:
    toy.write_text("custom_imports = dict(imports=['toy_task'])\n")
    sentence = run('train', toy).sentence
    assert 'has no model, train_dataloader, train_cfg, optim_wrapper, which training' in sentence


def test_unknown_failures_keep_their_traceback(run: Run, toy: Path) -> None:
    with pytest.raises(TypeError, match=r'ToyModel\.__init__'):
        toy.write_text(toy.read_text().replace('width=2', 'breadth=2'))
        run('train', toy)


def test_traceback_on_request(run: Run, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match=r'absent\.pth does not exist'):
        run('train', toy, '--traceback', '--resume', 'absent.pth')
    monkeypatch.setenv('MMVIM_TRACEBACK', '1')
    with pytest.raises(RuntimeError, match=r'absent\.pth does not exist'):
        run('train', toy, '--resume', 'absent.pth')


def test_as_a_script_from_any_directory(toy: Path) -> None:
    environment = {**os.environ, 'MMVIM_TRACEBACK': '0'}
    done = forked.run(TOOLS / 'train.py', toy, '--resume', 'absent.pth', cwd='/', env=environment)
    assert done.returncode == 1
    assert 'error: checkpoint absent.pth does not exist' in done.stderr
    assert 'Traceback' not in done.stderr


def test_segmentation_trains_with_validation(run: Run, segmentation: Path) -> None:
    outcome = run('train', segmentation, '--work-dir', 'w')
    assert outcome.code == 0
    assert 'mIoU' in outcome.out
    assert Path('w/iter_2.pth').is_file()


def test_another_backbone_by_options(run: Run, segmentation: Path) -> None:
    """The line of configs/vmamba/README.md: what the config's own backbone had has to go."""
    backbone = ['type=mmvim.VMamba', 'arch.dims=8', 'arch.depths=1,1', 'out_indices=1']
    options = [f'model.backbone.{option}' for option in backbone]
    argv = ('train', segmentation, '--work-dir', 'w', '--cfg-options', *options)
    sentence = run(*argv).sentence
    assert 'model.backbone keeps depth, base_channels, num_stages, strides, dilations' in sentence
    assert 'model.backbone._delete_=True' in sentence
    outcome = run(*argv, 'model.backbone._delete_=True')
    assert outcome.code == 0, outcome.err
    assert 'mIoU' in outcome.out and Path('w/iter_2.pth').is_file()


def test_missing_data_is_named_before_anything_is_built(run: Run, segmentation: Path) -> None:
    Path('scenes').rename('elsewhere')
    sentence = run('train', segmentation, '--work-dir', 'w').sentence
    assert "train_dataloader.dataset.data_root is 'scenes'" in sentence
    keys = [f'{split}_dataloader.dataset.data_root=...' for split in ('train', 'val', 'test')]
    assert f'--cfg-options {" ".join(keys)}' in sentence
    assert '"Data" in the README' in sentence
    assert not Path('w').exists()


def test_missing_folder_of_one_split_is_named(run: Run, segmentation: Path) -> None:
    option = 'val_dataloader.dataset.data_prefix.seg_map_path=truth'
    sentence = run('train', segmentation, '--cfg-options', option).sentence
    assert sentence.startswith("val_dataloader.dataset.data_prefix.seg_map_path is 'truth'")


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize(
    ('broken', 'content'),
    [
        ('images/2.png', b'\x89PNG\r\n\x1a\n cut'),
        ('images/2.png', b''),
        ('labels/2.png', b'no image at all'),
    ],
)
def test_corrupt_image_is_named(
    run: Run, segmentation: Path, workers: int, broken: str, content: bytes
) -> None:
    Path('scenes', broken).write_bytes(content)
    options = [f'train_dataloader.num_workers={workers}', 'train_dataloader.batch_size=4']
    outcome = run('train', segmentation, '--cfg-options', *options)
    assert outcome.code == 1
    assert outcome.sentence.startswith(f'scenes/{broken} cannot be loaded (')


@pytest.mark.parametrize(
    ('mask', 'words'),
    [
        (Image.new('RGB', (40, 32)), 'has shape (32, 40, 3), but its image scenes/images/2.png'),
        (Image.new('L', (32, 40)), 'has shape (40, 32), but its image scenes/images/2.png'),
        (Image.new('L', (40, 32), 3), ': label 3 is outside the 3 classes of the model'),
    ],
)
@pytest.mark.parametrize('tool', ['train', 'browse_dataset'])
def test_a_mask_that_does_not_fit_is_named(
    tool: str, mask: Image.Image, words: str, run: Run, segmentation: Path
) -> None:
    mask.save('scenes/labels/2.png')
    options = ('--cfg-options', 'train_dataloader.batch_size=4')
    where = '--work-dir' if tool == 'train' else '--out'
    sentence = run(tool, segmentation, where, 'w', *options).sentence
    assert sentence.startswith(
        f'scenes/labels/2.png{words}' if words[0] == ':' else f'scenes/labels/2.png {words}'
    )


def test_hostile_checkpoint_is_refused_and_not_run(run: Run, toy: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, ('harm',)

    for protocol in (None, 2):
        if protocol is None:
            torch.save(dict(state_dict=Hostile()), 'hostile.pth')
        else:
            Path('hostile.pth').write_bytes(pickle.dumps(Hostile(), protocol))
        sentence = run('train', toy, '--resume', 'hostile.pth').sentence
        assert 'refused' in sentence
        assert 'mkdir' in sentence
        assert not Path('harm').exists()


def test_checkpoint_that_reaches_for_attributes_is_refused(run: Run, toy: Path) -> None:
    class Walk:
        def __reduce__(self) -> tuple[Any, ...]:
            return getattr, (HistoryBuffer, '__init__')

    torch.save(dict(state_dict=dict(a=torch.ones(1)), walk=Walk()), 'walk.pth')
    sentence = run('train', toy, '--resume', 'walk.pth').sentence
    assert 'walk.pth is refused: it is no checkpoint, or asks for more than weights' in sentence
    assert "asks for attribute '__init__'" in sentence


@pytest.mark.parametrize('workers', [0, 1])
def test_file_missing_from_the_data_set_is_named(
    run: Run, segmentation: Path, workers: int
) -> None:
    Path('scenes/labels/2.png').unlink()
    options = [f'train_dataloader.num_workers={workers}', 'train_dataloader.batch_size=4']
    sentence = run('train', segmentation, '--cfg-options', *options).sentence
    assert sentence.startswith('scenes/labels/2.png cannot be loaded (')
    assert 'No such file' in sentence


def test_a_loader_without_a_batch_is_refused(run: Run, toy: Path) -> None:
    options = ('--cfg-options', 'train_dataloader.batch_size=16', 'train_dataloader.drop_last=True')
    outcome = run('train', toy, '--work-dir', 'w', *options)
    assert outcome.code == 1
    assert 'the data set has 8 samples, of which drop_last leaves no batch' in outcome.sentence
    endless = ('train_dataloader.sampler.type=InfiniteSampler', 'param_scheduler=None')
    text = toy.read_text().replace('by_epoch=True, max_epochs=1', 'by_epoch=False, max_iters=1')
    toy.write_text(text)
    assert run('train', toy, '--work-dir', 'w', *options, *endless).code == 0
