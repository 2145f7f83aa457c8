"""A data loader whose samples depend on seed, epoch and position alone."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

import torch
from mmengine.dist import get_dist_info
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mmvim.engine.resume.random_state import random_state, seed_sample, set_random_state


class SeededIndices:
    """The indices of one batch; going through them seeds each sample.

    torch goes through a batch's indices where it loads the samples, mostly in a worker: there the
    generators of Python, numpy and torch are seeded just before each sample is asked for. Without
    workers that is the training process, whose own generators are put back afterwards.

    Args:
        indices (Sequence[int]): Indices of the samples in the data set.
        seed (int): Seed of the run.
        epoch (int): Pass over the data, from 0.
        positions (range): Positions of these samples in that pass.
    """

    def __init__(self, indices: Sequence[int], seed: int, epoch: int, positions: range) -> None:
        self.indices = list(indices)
        self.seed = seed
        self.epoch = epoch
        self.positions = positions

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        kept = random_state(gpu=False) if get_worker_info() is None else None
        try:
            for position, index in zip(self.positions, self.indices):
                seed_sample(self.seed, self.epoch, position)
                yield index
        finally:
            if kept is not None:
                set_random_state(kept)


class SeededBatches:
    """Batches of indices that know their position and can start anywhere without loading.

    Args:
        batches (Iterable[Sequence[int]]): The batch sampler.
        seed (int): Seed of the run.
        rank (int): Rank of this process.
        world_size (int): Number of processes, which take the samples in turns as mmengine's
            samplers give them.
    """

    def __init__(
        self, batches: Iterable[Sequence[int]], seed: int, rank: int, world_size: int
    ) -> None:
        self.batches = batches
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self._begun: Iterator[SeededIndices] | None = None

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[SeededIndices]:
        # A generator: torch asks for the iterator of a pass twice, and uses the second one.
        begun, self._begun = self._begun, None
        yield from self._one_pass() if begun is None else begun

    def begin(self, epoch: int, skip: int = 0) -> int:
        """Make the next pass that of ``epoch``, without its first ``skip`` batches.

        The sampler must know the epoch already.

        Returns:
            int: How many of the ``skip`` batches that pass does not have.
        """
        self.epoch = epoch
        self._begun = self._one_pass()
        while skip and next(self._begun, None) is not None:
            skip -= 1
        return skip

    def advance(self, count: int) -> int:
        """Skip the first ``count`` batches, over as many passes as that takes.

        Returns:
            int: The pass of the next batch, from 0.

        Raises:
            RuntimeError: If a pass is empty.
        """
        epoch = 0
        while left := self.begin(epoch, count):
            if left == count:
                raise RuntimeError('the sampler of the training data gives no batch')
            count, epoch = left, epoch + 1
            sampler: Any = getattr(self.batches, 'sampler', None)
            if hasattr(sampler, 'set_epoch'):
                sampler.set_epoch(epoch)
        return epoch

    def _one_pass(self) -> Iterator[SeededIndices]:
        epoch, first, step = self.epoch, self.rank, self.world_size
        for indices in self.batches:
            end = first + len(indices) * step
            yield SeededIndices(indices, self.seed, epoch, range(first, end, step))
            first = end
        self.epoch = epoch + 1


class SeededDataLoader(DataLoader[Any]):
    """A data loader that takes its batches from :class:`SeededBatches`.

    * A sample is a function of (seed, epoch, position in the epoch): the same with any number of
      workers, and after any interruption.
    * Workers start with the first batch. Until then it costs nothing to set where to begin
      (``loader.batches``).
    * The loader draws from no generator of the process, so that a restarted pass leaves the
      model's randomness as it is.
    """

    batches: SeededBatches
    _latest: Any

    @classmethod
    def take_over(cls, loader: DataLoader[Any], seed: int) -> DataLoader[Any]:
        """Make a seeded loader of the same settings.

        Args:
            loader (DataLoader): A loader that must not be used later.
            seed (int): Seed of the run.

        Returns:
            DataLoader: The loader in its place; ``loader`` itself if it is not torch's own, or
            its data set has no indices, or it gives no batches.
        """
        if (
            type(loader) is not DataLoader
            or loader.batch_sampler is None
            or isinstance(loader.dataset, IterableDataset)
        ):
            return loader
        seeded = cls.__new__(cls)
        # torch refuses to set some of these one by one.
        vars(seeded).update(vars(loader))
        if loader.batch_size is None:  # a batch sampler of its own; the learning rate may scale
            vars(seeded)['batch_size'] = getattr(loader.batch_sampler, 'batch_size', None)
        seeded.generator = torch.Generator().manual_seed(seed)
        seeded.batches = SeededBatches(loader.batch_sampler, seed, *get_dist_info())
        seeded._latest = None
        return seeded

    @property
    def _index_sampler(self) -> SeededBatches:
        return self.batches

    def __iter__(self) -> Generator[Any, None, None]:  # type: ignore[override]
        yield from super().__iter__()

    def _get_iterator(self) -> Any:
        self._latest = super()._get_iterator()
        return self._latest

    def stop(self) -> None:
        """End the workers; torch waits 5 s for each if garbage collection has to do it."""
        if hasattr(self._latest, '_shutdown_workers'):
            self._latest._shutdown_workers()
        self._latest = self._iterator = None
