"""The hook that makes a runner's loading strict."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.registry import HOOKS
from mmengine.runner import get_priority
from torch import nn

from mmvim.errors import UserError


def load(model: nn.Module, checkpoint: dict[str, Any]) -> None:
    """What the runner does before it loads the checkpoint."""
    hook = HOOKS.build(dict(type='mmvim.StrictCheckpointHook', source='a.pth'))
    assert get_priority(hook.priority) > get_priority(EMAHook.priority)
    hook.after_load_checkpoint(SimpleNamespace(model=model), checkpoint)


def test_a_fitting_checkpoint_is_loaded() -> None:
    source, target = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    nn.init.constant_(source.weight, 3.0)
    for state in (source.state_dict(), {f'module.{k}': v for k, v in source.state_dict().items()}):
        nn.init.zeros_(target.weight)
        load(target, dict(state_dict=state))
        assert target.weight.tolist() == [3.0, 3.0]
    load(target, source.state_dict())  # weights alone


def test_a_misfit_is_refused() -> None:
    with pytest.raises(UserError, match=r'a\.pth does not fit the Linear.*1 key missing \(bias\)'):
        load(nn.Linear(1, 1), dict(state_dict=dict(weight=torch.ones(1, 1))))


def test_counters_of_old_files_may_be_missing() -> None:
    state = nn.BatchNorm1d(2).state_dict()
    del state['num_batches_tracked']
    state._metadata.clear()  # type: ignore[attr-defined]
    load(nn.BatchNorm1d(2), dict(state_dict=state))


def test_loading_hooks_of_the_model_count() -> None:
    class Resizing(nn.Linear):
        def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
            state_dict[f'{prefix}weight'] = state_dict[f'{prefix}weight'][:, :1]
            super()._load_from_state_dict(state_dict, prefix, *rest)

    load(Resizing(1, 1, bias=False), dict(state_dict=dict(weight=torch.ones(1, 5))))
