"""Refuse a checkpoint that does not fit the model."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner

from mmvim.checkpoints.strict import load_start, load_strictly
from mmvim.registry import HOOKS


@HOOKS.register_module()
class StrictCheckpointHook(Hook):
    """Makes loading and resuming loud, where the runner only logs keys that do not match.

    A checkpoint of this model behind any prefix (``module.``, ``model.``), or of a Vim under the
    published keys, is brought under the keys of the model.

    Args:
        exact (bool): Whether every tensor has to fit also where a training starts from
            ``load_from``, as it has to in tests and where a training goes on. False leaves what
            is no backbone at its initial values, and says so, see
            :func:`mmvim.checkpoints.load_start`. Defaults to False.
    """

    # Before EMAHook, whose average starts from the weights of the checkpoint.
    priority = 'VERY_HIGH'

    def __init__(self, exact: bool = False) -> None:
        self.exact = exact

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Load the weights; the runner then loads the same ones again.

        Raises:
            UserError: If they do not fit.
        """
        # The runner builds the loop that it is going to run.
        starts = isinstance(runner._train_loop, BaseLoop) and not runner._resume
        load = load_start if starts and not self.exact else load_strictly
        source = f'checkpoint {runner._load_from or "of the work dir"}'
        checkpoint['state_dict'] = load(runner.model, checkpoint, source)
