"""The random number generators of a process: saved, put back, seeded for each sample."""

import logging
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmvim.registry import HOOKS


def random_state(gpu: bool = True) -> dict[str, Any]:
    """The states of the generators of this process, as a checkpoint can hold them.

    Args:
        gpu (bool): Whether to include that of the current GPU, if any. Defaults to True.

    Returns:
        dict[str, Any]: ``python`` (int64 words and the pending Gaussian), ``numpy`` (MT19937:
            int64 words, position, pending Gaussian), ``torch`` (uint8) and ``cuda`` (uint8):
            tensors, numbers and strings alone, so that a checkpoint can be loaded weights-only.
    """
    version, words, pending = random.getstate()
    numpy: Any = np.random.get_state()
    name, key, position, has_gauss, gauss = numpy
    state: dict[str, Any] = dict(
        python=dict(version=version, words=torch.tensor(words), gauss=pending),
        numpy=dict(
            bit_generator=name,
            words=torch.from_numpy(key.astype(np.int64)),
            position=position,
            has_gauss=has_gauss,
            gauss=gauss,
        ),
        torch=torch.get_rng_state(),
    )
    if gpu and torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put back what :func:`random_state` gave; its tensors may be on any device by now."""
    python, numpy = state['python'], dict(state['numpy'])
    random.setstate((python['version'], tuple(python['words'].tolist()), python['gauss']))
    numpy['words'] = numpy['words'].cpu().numpy().astype(np.uint32)
    np.random.set_state(tuple(numpy.values()))
    torch.set_rng_state(state['torch'].cpu())
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())


def seed_sample(seed: int, epoch: int, position: int) -> None:
    """Seed the generators on the CPU for one sample, as a function of these three alone.

    GPU generators stay: they belong to the model.

    Args:
        seed (int): Seed of the run.
        epoch (int): Pass over the data, from 0.
        position (int): Position of the sample in that pass, over all processes, from 0.
    """
    # numpy's way to spread a few numbers over many bits. Each generator gets words of its own:
    # Python's and numpy's are the same algorithm and would give the same numbers from one seed.
    entropy = np.random.SeedSequence((seed, epoch, position)).generate_state(8)
    random.seed(int.from_bytes(entropy[:2].tobytes(), 'little'))
    np.random.seed(entropy[2:6])
    torch.default_generator.manual_seed(int.from_bytes(entropy[6:].tobytes(), 'little') >> 1)


@HOOKS.register_module()
class RandomStateHook(Hook):
    """Saves the generators of Python, numpy, torch and CUDA of every process and restores them.

    A resumed run then draws the dropout masks and drop paths that the unbroken one would have
    drawn. Validation may draw as it likes: the generators are restored after it.
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
        checkpoint['random_states'] = self._gathered or [self._training_state()]
        self._gathered = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Remember the states until training continues."""
        self._resumed = checkpoint.get('random_states')

    def before_train(self, runner: Runner) -> None:
        """Warn if the run cannot continue exactly where it was."""
        states, self._resumed = self._resumed, None
        if runner.iter == 0 and runner.epoch == 0:  # weights to start from, nothing to resume
            return
        if states is not None and len(states) == get_world_size():
            self._resumed = states
            return
        reason = 'holds no states of random number generators'
        if states is not None:
            reason = f'is of {len(states)} processes, this run of {get_world_size()}'
        runner.logger.log(
            logging.WARNING,
            f'the checkpoint {reason}: dropout and the like go on from the seed, not from '
            'where they were',
        )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Restore the states before the first step of a resumed run."""
        if self._resumed is not None:
            set_random_state(self._resumed[get_rank()])
            self._resumed = None

    def before_val(self, runner: Runner) -> None:
        """Remember the states of the training."""
        self._before_validation = random_state()

    def after_val(self, runner: Runner) -> None:
        """Restore them."""
        if self._before_validation is not None:
            set_random_state(self._before_validation)
            self._before_validation = None

    def _training_state(self) -> dict[str, Any]:
        if self._resumed is not None:  # nothing was trained yet
            return self._resumed[get_rank()]
        return random_state() if self._before_validation is None else self._before_validation
