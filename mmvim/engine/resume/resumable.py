"""Make the run of any config survive interruptions, and find the checkpoint that it resumes."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.runner import Runner, find_latest_checkpoint

from mmvim.engine.resume.data_position import DataPositionHook
from mmvim.engine.resume.random_state import RandomStateHook
from mmvim.engine.resume.save_on_signal import SaveOnSignalHook
from mmvim.engine.resume.seeded_loader import SeededDataLoader
from mmvim.errors import UserError


def use_atomic_checkpoints(cfg: Config) -> None:
    """Replace mmengine's ``CheckpointHook`` by ``AtomicCheckpointHook``, with the same arguments.

    A hook of another type stays, and so does ``checkpoint=None``.

    Args:
        cfg (Config): The config, changed in place.
    """
    if cfg.get('default_hooks') is None:
        cfg.default_hooks = {}
    # What the runner does where the config says nothing.
    cfg.default_hooks.setdefault('checkpoint', dict(type='CheckpointHook', interval=1))
    hook = cfg.default_hooks.checkpoint
    stock = ('CheckpointHook', 'mmengine.CheckpointHook', CheckpointHook)
    if isinstance(hook, dict) and hook.get('type') in stock:
        hook['type'] = 'mmvim.AtomicCheckpointHook'


def latest_checkpoint(work_dir: str) -> str | None:
    """The newest checkpoint of a work dir, None where no run has saved any.

    Raises:
        UserError: If the note in the work dir names a file that is not there.
    """
    path = find_latest_checkpoint(work_dir)
    if path is None or os.path.isfile(path):
        return path
    moved = Path(work_dir, Path(path).name)
    if moved.is_file():  # the work dir was moved after the run; the note in it has the old place
        return str(moved)
    raise UserError(
        f'{Path(work_dir, "last_checkpoint")} names {path}, which does not exist: give the '
        'checkpoint with --resume PATH'
    )


def check_resumable(path: str, checkpoint: Mapping[str, Any]) -> None:
    """Fail unless the file holds the state of a training run beside the weights.

    Raises:
        UserError: Names what is missing.
    """
    meta = checkpoint.get('meta')
    absent = [key for key in ('epoch', 'iter') if not isinstance(meta, Mapping) or key not in meta]
    absent += [key for key in ('optimizer', 'message_hub') if key not in checkpoint]
    if absent:
        raise UserError(
            f'{path} cannot be resumed, it holds weights but no {", ".join(absent)}: to start from '
            f'its weights, leave --resume out and add --cfg-options load_from={path}'
        )


def resume_with_seed(cfg: Config, meta: Mapping[str, Any]) -> None:
    """Build a resumed run with the seed of its checkpoint.

    mmengine sets that seed only after it has built the data loader with another.

    Args:
        cfg (Config): The config, changed in place.
        meta (Mapping[str, Any]): ``meta`` of the checkpoint.
    """
    randomness, seed = cfg.get('randomness') or {}, meta.get('seed')
    if seed is None:
        return
    if randomness.get('seed') not in (None, seed):
        print_log(
            f'randomness.seed={randomness["seed"]} is not used: the checkpoint goes on with its '
            f'own seed {seed}',
            level=logging.WARNING,
        )
    cfg.randomness = dict(randomness, seed=seed)


def make_resumable(runner: Runner) -> None:
    """Build a training loader that can begin anywhere, and register the hooks that resume a run.

    Args:
        runner (Runner): A runner that has not begun to train. ``FlexibleRunner`` stays as it is.
    """
    if not isinstance(runner, Runner):
        return
    if isinstance(runner._train_dataloader, dict):
        diff_rank_seed = runner._randomness_cfg.get('diff_rank_seed', False)
        loader = runner.build_dataloader(runner._train_dataloader, runner.seed, diff_rank_seed)
        runner._train_dataloader = SeededDataLoader.take_over(loader, runner.seed)
    for hook in (RandomStateHook, DataPositionHook, SaveOnSignalHook):
        if not any(isinstance(registered, hook) for registered in runner.hooks):
            runner.register_hook(hook())


def leave(runner: Runner) -> None:
    """Release what a run holds, however it ended: signal handlers and data workers.

    Args:
        runner (Runner): A runner that was made resumable.
    """
    for hook in runner.hooks:
        if isinstance(hook, SaveOnSignalHook):
            hook.release()
    # Not runner.train_dataloader, which builds what is not there yet.
    loader = getattr(runner, '_train_dataloader', None)
    if isinstance(loader, SeededDataLoader):
        loader.stop()
