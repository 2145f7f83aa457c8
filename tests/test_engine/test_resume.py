"""A run that was interrupted and resumed ends at the weights of the unbroken one."""

import copy
import inspect
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import noisy_task
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import IterBasedTrainLoop, Runner
from noisy_task import Crash

from mmvim.checkpoints import load_checkpoint_file
from mmvim.engine.resume.data_position import _Skipped
from mmvim.engine.resume.resumable import resume_with_seed

Train = Callable[..., Runner]
Same = Callable[[Path, Path], bool]
FINAL = {False: 'iter_12.pth', True: 'epoch_4.pth'}


def interrupted(train: Train, cfg: dict[str, Any], **interruption: Any) -> None:
    """Train until a crash or signal."""
    cfg = copy.deepcopy(cfg)
    cfg['custom_hooks'] = [*cfg.get('custom_hooks', []), dict(type='InterruptHook', **interruption)]
    with pytest.raises((Crash, SystemExit)) as caught:
        train(cfg)
    if interruption.get('number'):
        assert caught.value.code == 128 + interruption['number']


def last(work_dir: Path) -> str:
    """What the work dir says to resume from."""
    return (work_dir / 'last_checkpoint').read_text()


@pytest.mark.stack
@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('by_epoch', [False, True], ids=['iters', 'epochs'])
def test_crashed_and_resumed(
    train: Train, same_state: Same, tmp_path: Path, by_epoch: bool, workers: int
) -> None:
    train(noisy_task.config(tmp_path / 'whole', by_epoch))
    broken = noisy_task.config(tmp_path / 'broken', by_epoch, workers)
    interrupted(train, broken, at=7)
    assert Path(last(tmp_path / 'broken')).name == ('epoch_2.pth' if by_epoch else 'iter_6.pth')
    train(broken, resume=last(tmp_path / 'broken'))
    final = FINAL[by_epoch]
    assert same_state(tmp_path / 'whole' / final, tmp_path / 'broken' / final)
    # The comparison can fail: one step more or less makes another state.
    earlier = 'epoch_3.pth' if by_epoch else 'iter_10.pth'
    assert not same_state(tmp_path / 'whole' / final, tmp_path / 'broken' / earlier)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('by_epoch', [False, True], ids=['iters', 'epochs'])
@pytest.mark.parametrize('at', [6, 7])  # 6: after two whole epochs of three
def test_signalled_and_resumed(
    train: Train,
    same_state: Same,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    by_epoch: bool,
    number: int,
    at: int,
) -> None:
    ema = dict(custom_hooks=[dict(type='EMAHook', momentum=0.1)])
    train(noisy_task.config(tmp_path / 'whole', by_epoch, **ema))
    broken = noisy_task.config(tmp_path / 'broken', by_epoch, 1, **ema)
    interrupted(train, broken, at=at, number=int(number))
    path = last(tmp_path / 'broken')
    regular = at == 6 and not by_epoch
    assert Path(path).name == ('iter_6.pth' if regular else 'interrupted.pth')
    said = f'{signal.Signals(number).name}: saved {path} at iteration {at}; the same command'
    assert said in capfd.readouterr().err
    log = tmp_path / 'log'
    train(noisy_task.config(tmp_path / 'broken', by_epoch, log=log, **ema), resume=path)
    final = FINAL[by_epoch]
    assert same_state(tmp_path / 'whole' / final, tmp_path / 'broken' / final)
    # Past samples were not loaded again; the last batch of an epoch of ten has two.
    rest = {(False, 6): 24, (False, 7): 20, (True, 6): 20, (True, 7): 16}[by_epoch, at]
    assert len(log.read_text().split()) == rest
    # The next regular checkpoint took its place.
    assert not (tmp_path / 'broken' / 'interrupted.pth').exists()


@pytest.mark.parametrize('by_epoch', [False, True], ids=['iters', 'epochs'])
def test_signalled_in_validation(
    train: Train, same_state: Same, tmp_path: Path, by_epoch: bool
) -> None:
    ema = dict(custom_hooks=[dict(type='EMAHook', momentum=0.1)])
    train(noisy_task.config(tmp_path / 'whole', by_epoch, **ema))
    broken = noisy_task.config(tmp_path / 'broken', by_epoch, **ema)
    # No regular checkpoint at that iteration, so that one has to be saved amid validation.
    broken['default_hooks'] = dict(checkpoint=dict(type='CheckpointHook', interval=100))
    interrupted(train, broken, at=6, number=int(signal.SIGTERM), validation=True)
    path = last(tmp_path / 'broken')
    assert Path(path).name == 'interrupted.pth'
    train(noisy_task.config(tmp_path / 'broken', by_epoch, **ema), resume=path)
    final = FINAL[by_epoch]
    assert same_state(tmp_path / 'whole' / final, tmp_path / 'broken' / final)


@pytest.mark.stack
def test_iterations_over_a_finite_sampler(
    train: Train, same_state: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda seconds: None)
    finite = dict(by_epoch=False, sampler='DefaultSampler')
    train(noisy_task.config(tmp_path / 'whole', **finite))
    for at in (5, 7, 9):  # the last batch of a pass, the first and a later one
        work_dir = tmp_path / f'broken_{at}'
        interrupted(train, noisy_task.config(work_dir, **finite), at=at)
        train(noisy_task.config(work_dir, **finite), resume=last(work_dir))
        assert same_state(tmp_path / 'whole' / FINAL[False], work_dir / FINAL[False])


class Skipping:
    """An endless iterator as the onedl fork has it."""

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        return 7

    def skip_iter(self, num_iters: int) -> None:
        raise AssertionError('these batches were skipped by index')


@pytest.mark.parametrize('told', [False, True])
def test_a_loop_that_passes_over_batches_by_itself_gets_the_next_one(told: bool) -> None:
    batches = _Skipped(Skipping(), 3)
    if told:
        batches.skip_iter(3)
    assert next(batches) == 7


def test_a_loop_that_drops_past_batches_gets_nothing_first() -> None:
    batches = _Skipped(iter(range(9)), 3)
    assert [next(batches) for _ in range(5)] == [None, None, None, 0, 1]


@pytest.mark.stack
def test_a_loop_that_shall_not_advance_still_goes_on_behind_the_past_data(
    train: Train, same_state: Same, tmp_path: Path
) -> None:
    option = 'fast_forward_on_resume'
    if option not in inspect.signature(IterBasedTrainLoop).parameters:
        pytest.skip(f'the loop of this mmengine has no {option}')
    train(noisy_task.config(tmp_path / 'whole', False))
    broken = noisy_task.config(tmp_path / 'broken', False)
    broken['train_cfg'][option] = True
    interrupted(train, broken, at=7)
    train(broken, resume=last(tmp_path / 'broken'))
    assert same_state(tmp_path / 'whole' / FINAL[False], tmp_path / 'broken' / FINAL[False])


def test_a_seed_that_was_drawn_is_kept(train: Train, same_state: Same, tmp_path: Path) -> None:
    drawn = dict(by_epoch=False, randomness=dict(seed=None))
    whole = noisy_task.config(tmp_path / 'whole', **drawn)
    train(whole)
    train(noisy_task.config(tmp_path / 'broken', **drawn), resume=tmp_path / 'whole' / 'iter_4.pth')
    assert same_state(tmp_path / 'whole' / FINAL[False], tmp_path / 'broken' / FINAL[False])


def test_the_seed_of_the_checkpoint_wins_and_says_so(
    capfd: pytest.CaptureFixture[str],
) -> None:
    cfg = Config(dict(randomness=dict(seed=4, deterministic=True)))
    resume_with_seed(cfg, dict(seed=3))
    assert cfg.randomness == dict(seed=3, deterministic=True)
    assert 'randomness.seed=4 is not used' in capfd.readouterr().out
    for quiet in (Config({}), Config(dict(randomness=dict(seed=3)))):
        resume_with_seed(quiet, dict(seed=3))
        resume_with_seed(quiet, {})
        assert quiet.randomness.seed == 3
    assert not capfd.readouterr().out


def test_an_unbroken_run_is_seeded(train: Train, same_state: Same, tmp_path: Path) -> None:
    for name, changes in (('a', {}), ('b', {}), ('c', dict(randomness=dict(seed=4)))):
        train(noisy_task.config(tmp_path / name, False, **changes))
    final = FINAL[False]
    assert same_state(tmp_path / 'a' / final, tmp_path / 'b' / final)
    assert not same_state(tmp_path / 'a' / final, tmp_path / 'c' / final)


def test_weights_to_start_from_resume_nothing(
    train: Train, same_state: Same, tmp_path: Path
) -> None:
    train(noisy_task.config(tmp_path / 'a', True))
    interrupted(train, noisy_task.config(tmp_path / 'b', True), at=2, number=int(signal.SIGTERM))
    path = tmp_path / 'b' / 'interrupted.pth'
    runner = train(noisy_task.config(tmp_path / 'c', True, load_from=str(path)))
    assert runner.iter == 12  # from the first batch of the first epoch on


def test_a_checkpoint_without_states_is_resumed(
    train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(noisy_task.config(tmp_path / 'a', False))
    checkpoint = load_checkpoint_file(tmp_path / 'a' / 'iter_4.pth')
    del checkpoint['random_states']
    torch.save(checkpoint, tmp_path / 'old.pth')
    cfg = noisy_task.config(tmp_path / 'b', False, log_level='WARNING')
    assert train(cfg, resume=tmp_path / 'old.pth').iter == 12
    assert 'holds no states of random number generators' in capfd.readouterr().out
