"""Continue with the training data where the checkpoint was saved."""

import logging
from collections.abc import Iterator
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from mmvim.engine.resume.seeded_loader import SeededDataLoader
from mmvim.registry import HOOKS

_KEY = 'data_position'


@HOOKS.register_module()
class DataPositionHook(Hook):
    """Skips the past data of a resumed run by index, where mmengine would load all past batches.

    An epoch-based run continues in the middle of an epoch, which mmengine would begin again. The
    hook needs the seeded loader that ``tools/train.py`` builds, and leaves any other to mmengine.
    """

    # After DistSamplerSeedHook (NORMAL), which tells the sampler the epoch.
    priority = 'LOW'

    def __init__(self) -> None:
        self._resumed: dict[str, int] | None = None
        self._epoch = -1
        self._epoch_start = 0

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Note how many batches of the epoch the weights have seen."""
        if self._epoch < 0:  # an iteration-based run: the number of iterations says it all
            return
        epoch, iteration = checkpoint['meta']['epoch'], checkpoint['meta']['iter']
        # The checkpoint of a finished epoch has the number of the next one.
        batches = iteration - self._epoch_start if epoch == self._epoch else 0
        checkpoint[_KEY] = dict(epoch=epoch, batches=batches)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Remember the position until training continues."""
        self._resumed = checkpoint.get(_KEY)

    def before_train(self, runner: Runner) -> None:
        """Skip the past data of an iteration-based run."""
        loop, loader = runner.train_loop, runner.train_loop.dataloader
        if runner.iter == 0:  # weights to start from, nothing to resume
            self._resumed = None
        if not isinstance(loader, SeededDataLoader):
            runner.logger.log(
                logging.WARNING,
                f'the training data of this run come from a {type(loader).__name__}, which '
                'cannot go on by index: resumed, mmengine loads past batches again, or the epoch',
            )
        elif isinstance(loop, IterBasedTrainLoop) and runner.iter > 0:
            # mmengine's endless iterator counts passes, too.
            loop.dataloader_iterator._epoch = loader.batches.advance(runner.iter)
            loop.dataloader_iterator = _Skipped(loop.dataloader_iterator, runner.iter)
            runner.logger.info(f'{runner.iter} batches are skipped by index, none is loaded')

    def before_train_epoch(self, runner: Runner) -> None:
        """Begin or continue the epoch of an epoch-based run."""
        loop, loader = runner.train_loop, runner.train_loop.dataloader
        if not isinstance(loop, EpochBasedTrainLoop) or not isinstance(loader, SeededDataLoader):
            return
        resumed, self._resumed = self._resumed, None
        skip = resumed['batches'] if resumed and resumed['epoch'] == runner.epoch else 0
        self._epoch, self._epoch_start = runner.epoch, runner.iter - skip
        loader.batches.begin(runner.epoch, skip)
        if skip:
            runner.logger.info(f'epoch {runner.epoch + 1} goes on behind its {skip} first batches')


class _Skipped:
    """mmengine's endless iterator, whose first ``count`` batches have been skipped already.

    mmengine asks for past batches and drops them: it gets None. The onedl fork calls ``skip_iter``
    instead (or nothing, with ``fast_forward_on_resume=True``), which leaves nothing to do.
    """

    def __init__(self, batches: Iterator[Any], count: int) -> None:
        self.batches = batches
        self.count = 0 if hasattr(batches, 'skip_iter') else count

    def __next__(self) -> Any:
        if self.count:
            self.count -= 1
            return None
        return next(self.batches)

    def skip_iter(self, num_iters: int) -> None:
        """Do nothing: the batches were skipped by index."""
