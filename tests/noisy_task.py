"""A task of mmengine alone in which everything draws random numbers, imported by its config."""

import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from mmengine.runner import Runner

from mmvim.atomic_files import write_atomically


@DATASETS.register_module(force=True)
class NoisyData(BaseDataset):
    """Ten points, shifted by each of the three generators when they are loaded.

    ``log`` names a file that gets a line for each sample loaded.
    """

    def __init__(self, log: str | None = None, **kwargs: Any) -> None:
        self.log = log
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        return [dict(x=index / 10) for index in range(10)]

    def prepare_data(self, idx: int) -> dict[str, Any]:
        if self.log is not None:
            with open(self.log, 'a') as file:
                file.write(f'{idx}\n')
        x = self.get_data_info(idx)['x']
        shifts = [np.random.normal(), random.gauss(0, 1), float(torch.randn(()))]
        return dict(inputs=torch.tensor([x, *shifts]), data_samples=dict(y=torch.tensor([x])))


@MODELS.register_module(force=True)
class NoisyModel(BaseModel):
    """Two layers with dropout and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(4, 16)
        self.norm = torch.nn.BatchNorm1d(16)
        self.head = torch.nn.Linear(16, 1)

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = 'tensor') -> Any:
        x = torch.stack(list(inputs)) + random.gauss(0, 1) * np.random.normal()
        y = self.head(torch.nn.functional.dropout(self.norm(self.hidden(x)), 0.5, self.training))
        if mode != 'loss':
            return [dict(prediction=value + torch.randn(())) for value in y]
        return dict(loss=(y - torch.stack(list(data_samples['y']))).square().mean())


@METRICS.register_module(force=True)
class NoisyMetric(BaseMetric):
    """A score that grows with each validation, so that each one is the best."""

    default_prefix = 'noisy'
    validations = 0

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results += [float(sample['prediction']) for sample in data_samples]

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        NoisyMetric.validations += 1
        return dict(acc=float(NoisyMetric.validations))


class Crash(Exception):
    """What ends a run here as abruptly as an exception can."""


@HOOKS.register_module(force=True)
class InterruptHook(Hook):
    """Crashes, or signals its own process, behind iteration ``at`` or within validation there."""

    priority = 'VERY_HIGH'

    def __init__(self, at: int, number: int = 0, validation: bool = False) -> None:
        self.at = at
        self.number = number
        self.validation = validation

    def _interrupt(self) -> None:
        if not self.number:
            raise Crash
        os.kill(os.getpid(), self.number)

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if not self.validation and runner.iter + 1 == self.at:
            self._interrupt()

    def after_val_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if self.validation and runner.iter == self.at:
            self._interrupt()


@HOOKS.register_module(force=True)
class SlowHook(Hook):
    """Gives another process the time to signal this one, and says where it is."""

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if runner.iter >= 2:
            mark = Path(runner.work_dir, f'under_way_{runner.rank}')
            write_atomically(mark, str(os.getpid()).encode())
            signal.sigtimedwait([signal.SIGUSR1], 0.5)


def config(
    work_dir: Path,
    by_epoch: bool,
    workers: int = 0,
    sampler: str | None = None,
    log: Path | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Twelve iterations with a checkpoint every two (or four epochs of three), and validation."""
    data = dict(type='NoisyData')
    loader = dict(batch_size=4, num_workers=workers, persistent_workers=workers > 0)
    if by_epoch:
        train_cfg: dict[str, Any] = dict(by_epoch=True, max_epochs=4, val_interval=1)
    else:
        train_cfg = dict(by_epoch=False, max_iters=12, val_interval=2)
    sampler = sampler or ('DefaultSampler' if by_epoch else 'InfiniteSampler')
    cfg = dict(
        custom_imports=dict(imports=['noisy_task']),
        work_dir=str(work_dir),
        model=dict(type='NoisyModel'),
        train_dataloader=dict(
            **loader,
            dataset=dict(data, log=None if log is None else str(log)),
            sampler=dict(type=sampler, shuffle=True),
        ),
        val_dataloader=dict(
            batch_size=4,
            num_workers=0,
            dataset=data,
            sampler=dict(type='DefaultSampler', shuffle=False),
        ),
        val_evaluator=dict(type='NoisyMetric'),
        val_cfg=dict(),
        train_cfg=train_cfg,
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=0.01)),
        param_scheduler=[dict(type='CosineAnnealingLR', T_max=12, by_epoch=False)],
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=1 if by_epoch else 2, by_epoch=by_epoch)
        ),
        randomness=dict(seed=3),
        log_level='ERROR',
    )
    return {**cfg, **changes}
