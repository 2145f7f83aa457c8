"""Make the run of any config survive interruptions."""

import logging
from typing import Any

from mmengine.config import Config
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmvim.engine.resume.data_position import DataPositionHook
from mmvim.engine.resume.random_state import RandomStateHook
from mmvim.engine.resume.save_on_signal import SaveOnSignalHook
from mmvim.engine.resume.seeded_loader import SeededDataLoader

_STOCK = ('CheckpointHook', 'mmengine.CheckpointHook', CheckpointHook)
_HOOKS: tuple[type[Hook], ...] = (RandomStateHook, DataPositionHook, SaveOnSignalHook)


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
    if isinstance(hook, dict) and hook.get('type') in _STOCK:
        hook['type'] = 'mmvim.AtomicCheckpointHook'


def resume_with_seed(cfg: Config, meta: dict[str, Any]) -> None:
    """Build a resumed run with the seed of its checkpoint.

    mmengine sets that seed only after it has built the data loader with another.

    Args:
        cfg (Config): The config, changed in place.
        meta (dict[str, Any]): ``meta`` of the checkpoint.
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
    loader = runner._train_dataloader
    if isinstance(loader, dict):
        built = runner.build_dataloader(
            loader,
            seed=runner.seed,
            diff_rank_seed=runner._randomness_cfg.get('diff_rank_seed', False),
        )
        runner._train_dataloader = (
            SeededDataLoader.take_over(built, runner.seed)
            if SeededDataLoader.can_take_over(built)
            else built
        )
    for hook in _HOOKS:
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
