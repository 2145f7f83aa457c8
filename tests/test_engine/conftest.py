"""Runs in this process, made as ``tools/train.py`` makes them."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmvim.checkpoints import load_checkpoint_file
from mmvim.engine.resume.resumable import (
    leave,
    make_resumable,
    resume_with_seed,
    use_atomic_checkpoints,
)

_names = itertools.count()

Train = Callable[..., Runner]


@pytest.fixture
def train() -> Train:
    """Build a runner from a config dict and train, from ``resume`` (a path) if given."""

    def run(cfg: dict[str, Any], resume: Path | str | None = None) -> Runner:
        # mmengine keeps loggers by the experiment's name.
        config = Config(dict(cfg, experiment_name=f'survival_{next(_names)}'))
        if resume is not None:
            config.update(resume=True, load_from=str(resume))
            resume_with_seed(config, load_checkpoint_file(resume)['meta'])
        use_atomic_checkpoints(config)
        runner = Runner.from_cfg(config)
        make_resumable(runner)
        try:
            runner.train()
        finally:
            leave(runner)
        return runner

    return run


@pytest.fixture
def same_state() -> Callable[[Path, Path], bool]:
    """Whether two checkpoints hold the same weights and optimizer state, bit for bit."""

    def same(one: Any, other: Any) -> bool:
        if isinstance(one, torch.Tensor):
            return one.dtype == other.dtype and torch.equal(one, other)
        if isinstance(one, dict):
            return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
        if isinstance(one, (list, tuple)):
            return len(one) == len(other) and all(map(same, one, other))
        return bool(one == other)

    def compare(first: Path, second: Path) -> bool:
        one, other = load_checkpoint_file(first), load_checkpoint_file(second)
        return all(
            same(one[key], other[key])
            for key in ('state_dict', 'optimizer', 'param_schedulers', 'random_states')
        )

    return compare
