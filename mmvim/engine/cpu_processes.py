"""Several processes on a machine without an accelerator, through gloo.

mmengine 0.10 gives every process a CUDA device before it looks at the backend, and its model
wrapper one too; torch without CUDA refuses both. So the tools form the process group themselves,
which mmengine then takes as it is, and name :class:`CPUDistributedDataParallel` as the wrapper.
"""

import atexit
import datetime
import gc
from typing import Any

import torch.distributed as torch_dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.registry import MODEL_WRAPPERS
from torch import nn

from mmvim.errors import UserError


def has_amp_accelerator() -> bool:
    """Whether there is a device that mmengine's ``AmpOptimWrapper`` accepts."""
    return get_device() in ('cuda', 'npu', 'mlu', 'musa')


@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """mmengine's wrapper for a model that lies on the CPU.

    ``SyncBatchNorm`` has no CPU implementation for several processes: it becomes plain batch
    norm, whose statistics every process takes over its own share of the batch.

    Args:
        module (nn.Module): The model.
        device_ids (list[int], optional): The devices that mmengine passes; not used.
        **kwargs (Any): As :class:`mmengine.model.MMDistributedDataParallel` takes them.
    """

    def __init__(
        self, module: nn.Module, device_ids: list[int] | None = None, **kwargs: Any
    ) -> None:
        if any(isinstance(part, nn.SyncBatchNorm) for part in module.modules()):
            MMLogger.get_current_instance().warning(
                'SyncBN cannot run in several processes on the CPU and is replaced by BN: every '
                "process normalises by its own share of the batch, and the first one's running "
                'statistics are saved.'
            )
            module = revert_sync_batchnorm(module)
        super().__init__(module=module, **kwargs)


def _leave_processes() -> None:
    """Take the process group down while Python still runs.

    Its threads need the interpreter to let go of tensors, and abort a process that is ending. They
    end with the last reference to the group, which lies in the cycles between runner and hooks.
    """
    gc.collect()
    torch_dist.destroy_process_group()


def join_processes(cfg: Config, launcher: str) -> None:
    """Form the process group of a run on the CPU, and have its model wrapped for the CPU.

    Does nothing for a single process or where there is an accelerator: that is mmengine's job.

    Args:
        cfg (Config): The config; its ``model_wrapper_cfg`` is set unless it names a wrapper of its
            own.
        launcher (str): ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.

    Raises:
        UserError: If the processes talk through nccl, which needs GPUs, or were started by
            anything but torchrun.
    """
    if launcher == 'none' or has_amp_accelerator():
        return
    settings = dict((cfg.get('env_cfg') or {}).get('dist_cfg') or {})
    backend = settings.get('backend', 'nccl')
    if launcher != 'pytorch' or backend == 'nccl':
        raise UserError(
            f'--launcher {launcher} with the {backend} backend needs a GPU per process, but this '
            f'machine offers {get_device()} only: leave --launcher out, or run on the CPU with '
            'torchrun, --launcher pytorch and --cfg-options env_cfg.dist_cfg.backend=gloo'
        )
    if 'timeout' in settings:
        settings['timeout'] = datetime.timedelta(seconds=settings['timeout'])
    torch_dist.init_process_group(**settings)
    atexit.register(_leave_processes)
    wrapper = cfg.get('model_wrapper_cfg') or {}
    if wrapper.get('type', 'MMDistributedDataParallel') == 'MMDistributedDataParallel':
        # What mmengine's runner sets where the config says nothing.
        unused = cfg.get('find_unused_parameters', False)
        stock = dict(broadcast_buffers=False, find_unused_parameters=unused)
        cfg.model_wrapper_cfg = {**stock, **wrapper, 'type': CPUDistributedDataParallel.__name__}
