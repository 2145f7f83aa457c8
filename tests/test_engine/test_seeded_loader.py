"""The loader whose samples depend on their position alone."""

import multiprocessing
import random
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler, pseudo_collate
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset

from mmvim.engine.resume.random_state import random_state
from mmvim.engine.resume.seeded_loader import SeededBatches, SeededDataLoader

COUNT, BATCH = 7, 3


class Drawing(Dataset[list[float]]):
    """Samples are their index and a number of each generator."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> list[float]:
        return [index, random.random(), np.random.random(), torch.rand(()).item()]


def make(sampler: Any = None, seed: int = 0, **options: Any) -> SeededDataLoader:
    """A seeded loader in batches of three."""
    data = Drawing()
    sampler = sampler or DefaultSampler(data, shuffle=True, seed=5)
    options = dict(batch_size=BATCH, sampler=sampler, collate_fn=list) | options
    return SeededDataLoader.take_over(DataLoader(data, **options), seed)


def take(loader: SeededDataLoader, count: int) -> list[Any]:
    """The next batches of one pass."""
    return [batch for batch, _ in zip(loader, range(count))]


@pytest.mark.parametrize('workers', [1, 2])
def test_workers_do_not_matter(workers: int) -> None:
    expected = [list(make()), list(make(seed=1))]
    assert expected[0] != expected[1]
    for seed in range(2):
        assert list(make(seed=seed, num_workers=workers)) == expected[seed]


@pytest.mark.parametrize('persistent', [False, True])
def test_epochs_differ_and_repeat(persistent: bool) -> None:
    loader = make(num_workers=1, persistent_workers=persistent)
    epochs = [list(loader) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    again = make()
    again.batches.begin(1)
    assert [list(again), list(again)] == epochs[1:]


@pytest.mark.parametrize('workers', [0, 1])
def test_a_pass_begins_anywhere(workers: int) -> None:
    expected = list(make())
    for skip in range(4):
        loader = make(num_workers=workers)
        loader.batches.begin(0, skip)
        assert list(loader) == expected[skip:]


@pytest.mark.parametrize('count', [0, 1, 3, 5, 6, 7])
def test_advancing_runs_through_passes(count: int) -> None:
    def endless(loader: SeededDataLoader, epoch: int) -> Any:
        while True:  # as mmengine's iterator over a finite loader
            yield from loader
            epoch += 1
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]

    batches = endless(make(), 0)
    expected = [next(batches) for _ in range(9)][count:]
    loader = make()
    epoch = loader.batches.advance(count)
    assert epoch == max(0, count - 1) // 3
    batches = endless(loader, epoch)
    assert [next(batches) for _ in expected] == expected


def test_an_infinite_sampler_advances() -> None:
    def infinite() -> InfiniteSampler:
        return InfiniteSampler(Drawing(), shuffle=True, seed=5)

    expected = take(make(infinite()), 9)
    loader = make(infinite())
    assert loader.batches.advance(5) == 0
    assert take(loader, 4) == expected[5:]


def test_an_empty_sampler_is_an_error() -> None:
    with pytest.raises(RuntimeError, match='gives no batch'):
        SeededBatches([], seed=0, rank=0, world_size=1).advance(1)


def test_nothing_is_drawn_from_the_process() -> None:
    before = random_state()
    for workers in (0, 1):
        list(make(num_workers=workers))
    after = random_state()
    assert before['python']['words'].equal(after['python']['words'])
    assert before['numpy']['words'].equal(after['numpy']['words'])
    assert before['numpy']['position'] == after['numpy']['position']
    assert before['torch'].equal(after['torch'])


def test_processes_share_the_samples_of_one() -> None:
    def samples(rank: int, world_size: int, batch: int) -> list[Any]:
        indices = list(range(8))[rank::world_size]
        batches = [indices[i : i + batch] for i in range(0, len(indices), batch)]
        drawn = []
        for seeded in SeededBatches(batches, 0, rank, world_size):
            drawn.append([(index, random.random()) for index in seeded])
        return drawn

    one = samples(0, 1, 4)
    two = [sorted(a + b) for a, b in zip(samples(0, 2, 2), samples(1, 2, 2))]
    assert two == [sorted(batch) for batch in one]


@pytest.mark.parametrize('persistent', [False, True])
def test_workers_start_with_the_first_batch_and_stop_when_told(persistent: bool) -> None:
    loader = make(num_workers=1, persistent_workers=persistent)
    batches = iter(loader)
    assert not multiprocessing.active_children()
    next(batches)
    (worker,) = multiprocessing.active_children()
    loader.stop()
    assert not worker.is_alive()


def test_workers_stop_although_an_error_holds_on_to_them() -> None:
    class Broken(Drawing):
        def __getitem__(self, index: int) -> list[float]:
            raise ValueError('broken')

    loader = SeededDataLoader.take_over(DataLoader(Broken(), batch_size=1, num_workers=1), 0)
    with pytest.raises(ValueError, match='broken') as error:
        list(loader)
    loader.stop()
    assert not multiprocessing.active_children() and error.tb is not None


def test_a_batch_sampler_of_its_own_keeps_its_size() -> None:
    data = Drawing()
    batches = BatchSampler(DefaultSampler(data, shuffle=False), BATCH, drop_last=True)
    plain = DataLoader(data, batch_sampler=batches, collate_fn=pseudo_collate)
    loader = SeededDataLoader.take_over(plain, 0)
    assert loader.batch_size == BATCH  # scaling the learning rate reads it
    assert len(loader) == len(list(loader)) == COUNT // BATCH


def test_what_has_no_indices_is_left_alone() -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Any:
            return iter(range(3))

    for loader in (
        DataLoader(Stream(), batch_size=2),
        DataLoader(Drawing(), batch_size=None),
        make(),
    ):
        assert SeededDataLoader.take_over(loader, 0) is loader
    loader = DataLoader(Drawing(), batch_size=2)
    assert type(SeededDataLoader.take_over(loader, 0)) is SeededDataLoader
