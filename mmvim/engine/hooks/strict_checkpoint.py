"""Refuse a checkpoint that does not fit the model."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmvim.checkpoints.strict import load_strictly
from mmvim.registry import HOOKS


@HOOKS.register_module()
class StrictCheckpointHook(Hook):
    """Makes loading and resuming strict, where the runner only logs keys that do not match.

    Args:
        source (str): Name of the checkpoint in the message.
    """

    # After EMAHook (NORMAL), which puts the averaged weights in the checkpoint's place.
    priority = 'LOWEST'

    def __init__(self, source: str) -> None:
        self.source = source

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Load the weights strictly; the runner then loads the same ones again.

        Raises:
            UserError: If keys or shapes differ.
        """
        load_strictly(runner.model, checkpoint, self.source)
