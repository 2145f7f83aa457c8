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
    """

    # Before CheckpointHook (VERY_LOW), which would save the spoilt weights.
    priority = 'ABOVE_NORMAL'

    def after_train_iter(
        self, runner: Runner, *args: Any, outputs: Any = None, **kwargs: Any
    ) -> None:
        """Check ``outputs['loss']`` and name the parts of the loss that are not finite.

        Raises:
            UserError: If it is not finite.
        """
        outputs = outputs or {}
        if _is_finite(outputs.get('loss')):
            return
        parts = [
            f'{name}={float(value)}'
            for name, value in outputs.items()
            if name != 'loss' and not _is_finite(value)
        ]
        named = f' ({", ".join(parts)})' if parts else ''
        raise UserError(
            f'the loss is {float(outputs["loss"])}{named} at iteration {runner.iter + 1}: training '
            'stops and the weights are not saved; lower the learning rate, lengthen the warm-up, '
            'clip gradients (optim_wrapper.clip_grad) or train without fp16, and go on from the '
            'last checkpoint with --resume'
        )


def _is_finite(value: Any) -> bool:
    """Whether a logged value is a finite number, or none at all."""
    if isinstance(value, torch.Tensor):
        return value.numel() != 1 or bool(value.isfinite())
    return not isinstance(value, float) or math.isfinite(value)
