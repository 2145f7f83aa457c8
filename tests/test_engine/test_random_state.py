"""The generators, taken down and put back."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmvim.checkpoints import load_checkpoint_file
from mmvim.engine.resume.random_state import random_state, seed_sample, set_random_state


def draw() -> list[float]:
    """Some numbers of each generator; the odd count of Gaussians leaves one pending."""
    return [
        *(random.gauss(0, 1) for _ in range(3)),
        *np.random.normal(size=3).tolist(),
        *torch.randn(3).tolist(),
        *torch.nn.functional.dropout(torch.ones(8), 0.5).tolist(),
    ]


def test_a_checkpoint_holds_the_states(tmp_path: Path) -> None:
    draw()
    torch.save(dict(random_states=[random_state()]), tmp_path / 'a.pth')
    expected = draw()
    assert draw() != expected
    set_random_state(load_checkpoint_file(tmp_path / 'a.pth')['random_states'][0])
    assert draw() == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason='a generator of the GPU')
def test_gpu_state_round_trip(tmp_path: Path) -> None:
    torch.save(random_state(), tmp_path / 'a.pth')
    expected = torch.randn(4, device='cuda')
    # As a resumed run reads it: on the GPU.
    set_random_state(load_checkpoint_file(tmp_path / 'a.pth', map_location='cuda'))
    assert torch.equal(torch.randn(4, device='cuda'), expected)
    state = torch.cuda.get_rng_state()
    seed_sample(0, 0, 0)
    assert torch.equal(torch.cuda.get_rng_state(), state)


def test_a_sample_is_seeded_by_all_three() -> None:
    def numbers(*key: int) -> list[Any]:
        seed_sample(*key)
        return [random.random(), np.random.random(), torch.rand(()).item()]

    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**40, 0, 0)]
    drawn = [numbers(*key) for key in keys]
    assert len({number for row in drawn for number in row}) == 3 * len(keys)
    assert [numbers(*key) for key in keys] == drawn
