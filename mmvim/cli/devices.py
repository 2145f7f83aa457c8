"""Checks of a run's device and processes, made before mmengine fails on them."""

import os

import torch
from mmengine.config import Config
from mmengine.device import get_device

from mmvim.engine.cpu_processes import has_amp_accelerator
from mmvim.errors import UserError, first_line

# What mmengine.dist reads from the environment for each launcher (mmengine 0.10).
_LAUNCHER_ENVIRONMENT = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_NODELIST'),
    'mpi': (
        'OMPI_COMM_WORLD_LOCAL_RANK',
        'OMPI_COMM_WORLD_SIZE',
        'OMPI_COMM_WORLD_RANK',
        'MASTER_ADDR',
    ),
}
_STARTED_BY = {
    'pytorch': 'torchrun --nproc-per-node GPUS tools/... --launcher pytorch',
    'slurm': 'srun',
    'mpi': 'mpirun, with MASTER_ADDR set',
}


def enter_launcher(launcher: str, local_rank: int) -> None:
    """Pass the local rank on and check that the launcher's environment is there.

    Args:
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.
        local_rank: What torch's older launchers give as an argument, newer ones in the environment.

    Raises:
        UserError: Names the variables that are missing or no numbers.
    """
    os.environ.setdefault('LOCAL_RANK', str(local_rank))
    names = _LAUNCHER_ENVIRONMENT.get(launcher, ())
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        raise UserError(
            f'--launcher {launcher} needs {", ".join(missing)} in the environment: start the '
            f'processes with {_STARTED_BY[launcher]}, or leave --launcher out for one process'
        )
    numbers = [n for n in names if n.endswith(('RANK', 'SIZE', 'PORT', 'PROCID', 'NTASKS'))]
    for name in numbers:
        if not os.environ[name].isdigit():
            raise UserError(
                f'--launcher {launcher}: {name}={os.environ[name]!r} in the environment must be '
                'a number'
            )


def check_processes(cfg: Config, launcher: str) -> None:
    """A distributed run needs the device its backend talks through."""
    if launcher == 'none' or has_amp_accelerator():
        return
    backend = (cfg.get('env_cfg') or {}).get('dist_cfg', {}).get('backend', 'nccl')
    if backend == 'nccl':
        raise UserError(
            f'--launcher {launcher} with the nccl backend needs a GPU per process, but this '
            f'machine offers {get_device()} only: leave --launcher out, or run on the CPU with '
            '--cfg-options env_cfg.dist_cfg.backend=gloo'
        )


def check_amp(cfg: Config) -> None:
    """``AmpOptimWrapper`` trains on an accelerator only."""
    type_ = (cfg.get('optim_wrapper') or {}).get('type')
    if _plain(type_) == 'AmpOptimWrapper' and not has_amp_accelerator():
        raise UserError(
            f'mixed precision (--amp, or AmpOptimWrapper in the config) needs a GPU, but this '
            f'machine offers {get_device()} only: train without it'
        )


def enable_amp(cfg: Config) -> None:
    """Turn the config's ``OptimWrapper`` into ``AmpOptimWrapper`` with dynamic loss scaling."""
    wrapper = cfg.optim_wrapper
    name = _plain(wrapper.get('type', 'OptimWrapper'))
    if name not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise UserError(
            f'--amp replaces OptimWrapper by AmpOptimWrapper, but the config has '
            f'optim_wrapper.type={name}: set mixed precision in the config itself'
        )
    wrapper.type = 'AmpOptimWrapper'
    wrapper.setdefault('loss_scale', 'dynamic')


def _plain(type_: object) -> str:
    """A type's name without its scope."""
    name = type_ if isinstance(type_, str) else getattr(type_, '__name__', '')
    return name.rpartition('.')[2]


def check_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        UserError: If torch knows no such device or the machine has none.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f'--device {name} cannot be used ({first_line(error)}); '
            f'this machine offers {get_device()}'
        ) from error
    return device
