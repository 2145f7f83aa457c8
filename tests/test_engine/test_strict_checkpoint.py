"""The hook that makes a runner's loading strict."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, get_priority
from torch import nn

from mmvim.errors import UserError


def load(model: nn.Module, checkpoint: dict[str, Any], loop: Any = None, **options: Any) -> None:
    """What the runner does before it loads the checkpoint."""
    hook = HOOKS.build(dict(type='mmvim.StrictCheckpointHook', **options))
    assert get_priority(hook.priority) < get_priority('ABOVE_NORMAL')  # of EMAHook, in our configs
    runner = SimpleNamespace(model=model, _train_loop=loop, _resume=False, _load_from='a.pth')
    hook.after_load_checkpoint(runner, checkpoint)


class Loop(BaseLoop):
    """That of a training that starts."""

    def __init__(self) -> None:
        pass

    def run(self) -> None:
        pass


@pytest.mark.parametrize('form', ['whole', 'other head', 'wrapped'])
def test_a_training_starts_from_what_fits(form: str) -> None:
    source, target = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3)), nn.Sequential()
    target.append(nn.Linear(2, 2)).append(nn.Linear(2, 4 if form == 'other head' else 3))
    state = source.state_dict()
    state = {f'module._orig_mod.{k}': v for k, v in state.items()} if form == 'wrapped' else state
    checkpoint: dict[str, Any] = dict(model=state)
    if form == 'other head':
        with pytest.raises(UserError, match=r'checkpoint a\.pth does not fit the Sequential'):
            load(target, checkpoint, Loop(), exact=True)
    load(target, checkpoint, Loop())
    assert torch.equal(target[0].weight, source[0].weight)
    # What the runner and EMAHook load then.
    target.load_state_dict(checkpoint['state_dict'], strict=True)
    if form == 'other head':
        with pytest.raises(UserError, match=r'2 keys of another shape'):
            load(target, dict(model=state))  # a test


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
