"""The hook that stops at a loss that is no number."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import get_priority

from mmvim.engine import NonFiniteLossHook
from mmvim.errors import UserError


def step(hook: NonFiniteLossHook, **losses: Any) -> None:
    """One training iteration with these values, the eighth."""
    hook.after_train_iter(SimpleNamespace(iter=7), 0, outputs=losses)  # type: ignore[arg-type]


def test_finite_losses_pass() -> None:
    hook = NonFiniteLossHook()
    step(hook, loss=torch.tensor(1e30), acc=float('nan'))
    step(hook, loss=0.5)
    step(hook)
    step(hook, loss=torch.tensor(1.0, requires_grad=True), shape=torch.zeros(2))


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_the_first_bad_loss_stops_and_names_its_part(value: float) -> None:
    with pytest.raises(UserError) as caught:
        step(
            NonFiniteLossHook(),
            loss=torch.tensor(value),
            loss_mask=torch.tensor(value),
            loss_box=torch.tensor(1.0),
        )
    text = str(caught.value)
    assert text.startswith(f'the loss is {value} (loss_mask={value}) at iteration 8: ')
    assert 'loss_box' not in text


def test_runs_before_the_checkpoint_is_saved() -> None:
    hook = HOOKS.build(dict(type='mmvim.NonFiniteLossHook'))
    assert get_priority(hook.priority) < get_priority(CheckpointHook.priority)
