"""The hook that saves checkpoints atomically, its options, and a disk that is full."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import noisy_task
import pytest
from mmengine.config import Config
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmvim import atomic_files
from mmvim.checkpoints import load_checkpoint_file
from mmvim.engine import AtomicCheckpointHook
from mmvim.engine.resume.resumable import use_atomic_checkpoints
from mmvim.errors import UserError

Train = Callable[..., Runner]


def checkpoints(work_dir: Path) -> list[str]:
    """The names of all checkpoints, and of anything half written."""
    return sorted(name for name in os.listdir(work_dir) if name.endswith(('.pth', '.partial')))


def config(work_dir: Path, **options: Any) -> dict[str, Any]:
    """Twelve iterations with a checkpoint every two; a new best one with each validation."""
    hook = dict(type='CheckpointHook', by_epoch=False, interval=2, **options)
    return noisy_task.config(work_dir, False, default_hooks=dict(checkpoint=hook))


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], bool]], None]:
    """Let the writing of chosen files fail for want of room."""

    def choose(fails: Callable[[str], bool]) -> None:
        write = open

        def limited(path: Any, *args: Any) -> Any:
            file = write(path, *args)
            if fails(Path(path).name):
                file.write(b'half')
                file.close()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return file

        monkeypatch.setattr(atomic_files, 'open', limited, raising=False)

    return choose


def test_options_do_what_they_do_in_mmengine(train: Train, tmp_path: Path) -> None:
    options = dict(
        max_keep_ckpts=2,
        save_best='noisy/acc',
        save_begin=4,
        out_dir=str(tmp_path / 'out'),
        published_keys=['meta', 'state_dict'],
        filename_tmpl='step_{}.pth',
    )
    train(config(tmp_path / 'w', **options))
    names = checkpoints(tmp_path / 'out' / 'w')
    published = [name for name in names if '-' in name]
    assert [name for name in names if '-' not in name] == [
        'best_noisy_acc_step_12.pth',
        'step_10.pth',
        'step_12.pth',
    ]
    assert len(published) == 2
    kept = load_checkpoint_file(tmp_path / 'out' / 'w' / 'step_12.pth')
    assert kept['message_hub']['runtime_info']['keep_ckpt_ids'] == [10, 12]
    assert checkpoints(tmp_path / 'w') == []
    note = (tmp_path / 'w' / 'last_checkpoint').read_text()
    assert note == str(tmp_path / 'out' / 'w' / 'step_12.pth')


def test_old_ones_are_removed_last(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, str]] = []
    replace, remove = os.replace, os.remove

    def replaced(source: Any, target: Any) -> None:
        replace(source, target)
        events.append(('saved', Path(target).name))

    def removed(path: Any) -> None:
        remove(path)
        events.append(('removed', Path(path).name))

    monkeypatch.setattr(os, 'replace', replaced)
    monkeypatch.setattr(os, 'remove', removed)
    train(config(tmp_path, max_keep_ckpts=1, save_best='noisy/acc'))
    new_best = [
        ('saved', 'best_noisy_acc_iter_4.pth'),
        ('saved', 'iter_4.pth'),  # again, with the best one noted in it
        ('saved', 'last_checkpoint'),
        ('removed', 'best_noisy_acc_iter_2.pth'),
    ]
    regular = [('saved', 'iter_4.pth'), ('saved', 'last_checkpoint'), ('removed', 'iter_2.pth')]
    begin = events.index(('saved', 'iter_4.pth'))
    assert events[begin : begin + 7] == regular + new_best
    assert checkpoints(tmp_path) == ['best_noisy_acc_iter_12.pth', 'iter_12.pth']


def test_what_a_kill_left_is_cleared_away(train: Train, tmp_path: Path) -> None:
    """Killed behind the new checkpoint and before the removal of the old one."""
    train(config(tmp_path / 'a', max_keep_ckpts=-1))
    (tmp_path / 'b').mkdir()
    train(config(tmp_path / 'b', max_keep_ckpts=1))
    state = load_checkpoint_file(tmp_path / 'b' / 'iter_12.pth')
    assert state['message_hub']['runtime_info']['keep_ckpt_ids'] == [10, 12]
    (tmp_path / 'a' / 'iter_10.pth').rename(tmp_path / 'b' / 'iter_10.pth')
    (tmp_path / 'b' / '.iter_14.pth.partial').write_bytes(b'half')
    cfg = config(tmp_path / 'b', max_keep_ckpts=1)
    train(cfg, resume=tmp_path / 'b' / 'iter_12.pth')
    assert checkpoints(tmp_path / 'b') == ['iter_12.pth']


def test_a_full_disk_loses_nothing_older(
    train: Train,
    tmp_path: Path,
    full_disk: Callable[..., None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    full_disk(lambda name: name.startswith(('.iter_6', '.iter_8')))
    cfg = config(tmp_path, max_keep_ckpts=1)
    train(dict(cfg, log_level='WARNING'))
    out = capfd.readouterr().out
    assert 'iter_6.pth could not be written (No space left on device)' in out
    assert f'{tmp_path}/iter_4.pth is as it was' in out
    # Room again: the last one was saved, and only then the one from before the trouble removed.
    assert checkpoints(tmp_path) == ['iter_12.pth']
    hub = load_checkpoint_file(tmp_path / 'iter_12.pth')['message_hub']['runtime_info']
    assert hub['keep_ckpt_ids'] == [10, 12]


@pytest.mark.parametrize('first', ['.iter_2.pth', '.last_checkpoint'])
def test_a_full_disk_from_the_start_is_an_error(
    train: Train, tmp_path: Path, full_disk: Callable[..., None], first: str
) -> None:
    full_disk(lambda name: name.startswith(first))
    with pytest.raises(UserError, match=r'iter_2\.pth could not .*no older checkpoint$'):
        train(config(tmp_path))
    assert '.iter_2.pth.partial' not in checkpoints(tmp_path)


def test_a_full_disk_at_the_end_is_an_error(
    train: Train, tmp_path: Path, full_disk: Callable[..., None]
) -> None:
    full_disk(lambda name: name.startswith('.iter_12'))
    with pytest.raises(UserError, match=r'iter_12\.pth could not .*/iter_10\.pth is as it was'):
        train(config(tmp_path, max_keep_ckpts=1))
    assert checkpoints(tmp_path) == ['iter_10.pth']
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'iter_10.pth')


def test_a_full_disk_keeps_the_older_best(
    train: Train,
    tmp_path: Path,
    full_disk: Callable[..., None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    full_disk(lambda name: name.startswith(('.best_noisy_acc_iter_10', '.best_noisy_acc_iter_12')))
    cfg = config(tmp_path, max_keep_ckpts=1, save_best='noisy/acc')
    runner = train(dict(cfg, log_level='WARNING'))
    assert 'the best checkpoint could not be written' in capfd.readouterr().out
    assert checkpoints(tmp_path) == ['best_noisy_acc_iter_8.pth', 'iter_12.pth']
    assert runner.message_hub.get_info('best_ckpt').endswith('best_noisy_acc_iter_8.pth')


def test_it_takes_the_place_of_mmengines() -> None:
    checkpoint = dict(type='CheckpointHook', interval=3, max_keep_ckpts=2)
    cfg = Config(dict(default_hooks=dict(checkpoint=checkpoint)))
    use_atomic_checkpoints(cfg)
    hook = HOOKS.build(cfg.default_hooks.checkpoint)
    assert isinstance(hook, AtomicCheckpointHook)
    assert (hook.interval, hook.max_keep_ckpts) == (3, 2)
    for untouched in (dict(type='Mine'), None):
        cfg = Config(dict(default_hooks=dict(checkpoint=untouched)))
        use_atomic_checkpoints(cfg)
        assert cfg.default_hooks.checkpoint == untouched
    for empty in (Config({}), Config(dict(default_hooks=None))):
        use_atomic_checkpoints(empty)
        assert empty.default_hooks.checkpoint == dict(type='mmvim.AtomicCheckpointHook', interval=1)
