"""Preparation of a config before anything is built: load it, check it, fill it in."""

import os
import tempfile
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmvim.analysis.model_views import build_model
from mmvim.checkpoints.reading import read_checkpoint
from mmvim.checkpoints.strict import load_strictly
from mmvim.cli.config import load_config
from mmvim.cli.contradictions import check_config, check_trackers
from mmvim.cli.data_paths import check_data
from mmvim.datasets.checked_loading import check_loading_of_run
from mmvim.engine import StrictCheckpointHook
from mmvim.engine.cpu_processes import has_amp_accelerator, join_processes
from mmvim.engine.quiet_runner import QuietRunner
from mmvim.errors import UserError

# What mmengine.dist reads from the environment for each launcher (mmengine 0.10).
_ENVIRONMENT = {
    'none': (),
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_NODELIST'),
    'mpi': ('OMPI_COMM_WORLD_LOCAL_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK',
            'MASTER_ADDR'),
}  # fmt: skip


def prepare(
    args: Namespace, purpose: str, *keys: str, splits: Sequence[str] = ()
) -> tuple[Config, dict[str, Any]]:
    """Load the config of a tool and check all that can be checked before anything is built.

    Of ``args`` it reads ``config`` and ``cfg_options``, and where the tool has them ``launcher``
    (whose processes are joined), ``checkpoint``, ``work_dir`` and ``out``, which are created last.

    Args:
        args (Namespace): The command line.
        purpose (str): What needs the ``keys``, for the message.
        *keys (str): Root keys of the config that must be there.
        splits (Sequence[str]): Of ``'train'``, ``'val'``, ``'test'``: those whose data are read.

    Returns:
        tuple[Config, dict]: The config, and the content of the checkpoint, if the tool takes one.

    Raises:
        UserError: On the first thing that is wrong.
    """
    launcher = getattr(args, 'launcher', 'none')
    check_launcher(launcher, getattr(args, 'local_rank', 0))
    cfg = load_config(args.config, args.cfg_options)
    missing = [key for key in keys if cfg.get(key) is None]
    if missing:
        raise UserError(f'{args.config} has no {", ".join(missing)}, which {purpose} needs')
    if 'launcher' in args:
        cfg.launcher = launcher
    check_config(cfg, splits)
    if splits and ('work_dir' in args or 'checkpoint' in args):  # browsing writes to no tracker
        check_trackers(cfg)
    check_data(cfg, ['train'] if 'train' in splits and cfg.get('val_cfg') is None else splits)
    fill_loaders(cfg)
    checkpoint: dict[str, Any] = {}
    if 'checkpoint' in args:
        checkpoint = read_checkpoint(args.checkpoint)
        cfg.load_from, cfg.resume = args.checkpoint, False
    if 'launcher' in args:
        join_processes(cfg, launcher)
    if 'work_dir' in args:
        cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
        make_writable(cfg.work_dir, 'the work dir')
    if 'out' in args:
        make_writable(args.out, '--out')
    return cfg, checkpoint


def load_model(cfg: Config, args: Namespace, checkpoint: Mapping[str, Any]) -> Any:
    """The config's model in evaluation mode on ``args.device``, with the weights of a checkpoint.

    Raises:
        UserError: If they do not fit exactly.
    """
    model = build_model(cfg)
    load_strictly(model, checkpoint, f'checkpoint {args.checkpoint}')
    return model.to(args.device).eval()


def build_runner(cfg: Config) -> Runner:
    """The runner of the config, strict about its checkpoint and its data.

    mmengine keeps visualizers by name for the whole process: a second run, with a name from its
    config, would write its scalars into the folder of the first.
    """
    if cfg.get('visualizer') is not None:
        cfg.visualizer.name = f'run-{time.time_ns()}'
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else QuietRunner.from_cfg(cfg)
    if cfg.get('load_from') is not None:
        runner.register_hook(StrictCheckpointHook())
    check_loading_of_run(runner)
    return runner


def check_launcher(launcher: str, local_rank: int) -> None:
    """Pass the local rank of an older launcher on, and check the environment of any."""
    os.environ.setdefault('LOCAL_RANK', str(local_rank))
    names = _ENVIRONMENT[launcher]
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        raise UserError(
            f'--launcher {launcher} needs {", ".join(names)} in the environment, which lacks '
            f'{", ".join(missing)}: start the processes with torchrun, srun or mpirun, or leave '
            '--launcher out for one process'
        )


def fill_loaders(cfg: Config) -> None:
    """Give mmpretrain's loaders what its scripts keep, and take what needs workers from others."""
    for split in ('train', 'val', 'test'):
        loader = cfg.get(f'{split}_dataloader')
        if loader is None:
            continue
        if cfg.get('default_scope') == 'mmpretrain':
            loader.setdefault('collate_fn', dict(type='default_collate'))
            loader.setdefault('pin_memory', True)
            loader.setdefault('persistent_workers', True)
        if not loader.get('num_workers'):  # torch refuses them
            for key in ('persistent_workers', 'prefetch_factor', 'multiprocessing_context'):
                loader.pop(key, None)


def prepare_amp(cfg: Config, enable: bool) -> None:
    """Turn the config's ``OptimWrapper`` into ``AmpOptimWrapper`` with dynamic loss scaling.

    Args:
        cfg (Config): Changed in place.
        enable (bool): Do so; False only checks what the config says itself.

    Raises:
        UserError: If it is another wrapper, or there is no accelerator.
    """
    wrapper = cfg.optim_wrapper
    type_ = wrapper.get('type', 'OptimWrapper')
    name = str(getattr(type_, '__name__', type_)).rpartition('.')[2]
    if enable and name not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise UserError(
            f'--amp replaces OptimWrapper by AmpOptimWrapper, but the config has '
            f'optim_wrapper.type={name}: set mixed precision in the config itself'
        )
    if (enable or name == 'AmpOptimWrapper') and not has_amp_accelerator():
        raise UserError(
            f'mixed precision (--amp, or AmpOptimWrapper in the config) needs a GPU, but this '
            f'machine offers {get_device()} only: train without it'
        )
    if enable:
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')


def make_writable(folder: str | Path, what: str) -> Path:
    """Create a folder and prove that a file can be written in it.

    Args:
        folder (str | Path): Created with its parents where missing.
        what (str): What the user knows it as, for the message.

    Raises:
        UserError: If it cannot be created or written.
    """
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(b'\0')
    except OSError as error:
        raise UserError(
            f'{what} {folder} cannot be written ({error.strerror}): give another folder'
        ) from error
    return path
