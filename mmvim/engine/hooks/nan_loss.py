"""Stop training when the loss is not finite."""

import math
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmvim.errors import UserError
from mmvim.registry import HOOKS


@HOOKS.register_module()
class NonFiniteLossHook(Hook):
    """Stops the run when a loss is NaN or infinite, before a checkpoint can hold the damage.

    mmengine has no such hook. The check costs no extra wait for the device: mmengine reads every
    loss for its log in each iteration anyway.

    Args:
        patience (int): Number of non-finite losses in a row that are tolerated. 0 suits fp32 and
            bf16; under fp16 with dynamic loss scaling, where the optimizer skips such a step by
            itself, allow a few. Defaults to 0.

    Raises:
        ValueError: If ``patience`` is negative.
    """

    # Before CheckpointHook (VERY_LOW), which would save the spoilt weights.
    priority = 'ABOVE_NORMAL'

    def __init__(self, patience: int = 0) -> None:
        if patience < 0:
            raise ValueError(f'patience={patience} must be 0 or more')
        self.patience = patience
        self._in_a_row = 0

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Check ``outputs['loss']`` and name the parts of the loss that are not finite.

        Raises:
            UserError: At the first non-finite loss beyond ``patience``.
        """
        values = {name: _number(value) for name, value in (outputs or {}).items()}
        loss = values.get('loss')
        if loss is None or math.isfinite(loss):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        if self._in_a_row <= self.patience:
            return
        parts = [
            f'{name}={value}'
            for name, value in values.items()
            if value is not None and not math.isfinite(value) and name != 'loss'
        ]
        named = f' ({", ".join(parts)})' if parts else ''
        raise UserError(
            f'the loss is {loss}{named} at iteration {runner.iter + 1}: training stops and the '
            'weights are not saved; lower the learning rate, lengthen the warm-up, clip gradients '
            '(optim_wrapper.clip_grad) or train without fp16, and go on from the last checkpoint '
            'with --resume'
        )


def _number(value: Any) -> float | None:
    """A logged value as a number, None for what is none."""
    if isinstance(value, torch.Tensor):
        return float(value.item()) if value.numel() == 1 else None
    return float(value) if isinstance(value, (int, float)) else None
