"""Keep the random number generators in the checkpoint."""

import logging
from typing import Any

from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmvim.engine.resume.random_state import random_state, set_random_state
from mmvim.registry import HOOKS

_KEY = 'random_states'


@HOOKS.register_module()
class RandomStateHook(Hook):
    """Saves the generators of Python, numpy, torch and CUDA of every process, and puts them back.

    A resumed run then draws the same dropout masks and drop paths as the unbroken one would
    have. Validation may draw as it likes: the generators are put back behind it.
    """

    # First in each phase: what other hooks draw then comes out of the same state.
    priority = 'HIGHEST'

    def __init__(self) -> None:
        self._before_validation: dict[str, Any] | None = None
        self._gathered: list[dict[str, Any]] | None = None
        self._resumed: list[dict[str, Any]] | None = None

    def before_collective_checkpoint(self, runner: Runner) -> None:
        """Collect the states of all processes; only the first one saves."""
        self._gathered = all_gather_object(self._training_state())

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Put the states in the checkpoint, a list with one entry per process."""
        checkpoint[_KEY] = self._gathered or [self._training_state()]
        self._gathered = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Remember the states until training goes on."""
        self._resumed = checkpoint.get(_KEY)

    def before_train(self, runner: Runner) -> None:
        """Say so where a run cannot go on exactly as it would have."""
        if runner.iter == 0 and runner.epoch == 0:  # weights to start from, nothing to resume
            self._resumed = None
            return
        reason = None
        if self._resumed is None:
            reason = 'holds no states of random number generators'
        elif len(self._resumed) != get_world_size():
            reason = f'is of {len(self._resumed)} processes, this run of {get_world_size()}'
            self._resumed = None
        if reason is not None:
            runner.logger.log(
                logging.WARNING,
                f'the checkpoint {reason}: dropout and the like go on from the seed, not from '
                'where they were',
            )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Put the states back before the first step of a resumed run."""
        if self._resumed is not None:
            set_random_state(self._resumed[get_rank()])
            self._resumed = None

    def before_val(self, runner: Runner) -> None:
        """Remember the states that training goes on with."""
        self._before_validation = random_state()

    def after_val(self, runner: Runner) -> None:
        """Put them back."""
        if self._before_validation is not None:
            set_random_state(self._before_validation)
            self._before_validation = None

    def _training_state(self) -> dict[str, Any]:
        if self._resumed is not None:  # nothing was trained yet
            return self._resumed[get_rank()]
        return random_state() if self._before_validation is None else self._before_validation
