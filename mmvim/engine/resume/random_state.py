"""The random number generators of a process: taken down, put back, seeded anew for a sample."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

HostState = tuple[tuple[Any, ...], dict[str, Any], torch.Tensor]


def host_state() -> HostState:
    """The states of Python's, numpy's and torch's generators on the CPU."""
    return random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()


def set_host_state(state: HostState) -> None:
    """Put back what :func:`host_state` gave."""
    python, numpy, torch_cpu = state
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(torch_cpu)


def random_state() -> dict[str, Any]:
    """The states of all generators of this process, as a checkpoint can hold them.

    Returns:
        Tensors, numbers and strings only, so that a checkpoint stays loadable weights-only:
        ``python`` (int64 words and the pending Gaussian), ``numpy`` (MT19937: int64 words,
        position, pending Gaussian), ``torch`` (uint8) and, where there is a GPU, ``cuda`` (uint8,
        of the current device).
    """
    (version, words, gauss), numpy, torch_cpu = host_state()
    state: dict[str, Any] = dict(
        python=dict(version=version, words=torch.tensor(words), gauss=gauss),
        numpy=dict(
            bit_generator=numpy['bit_generator'],
            words=torch.from_numpy(numpy['state']['key'].astype(np.int64)),
            position=int(numpy['state']['pos']),
            has_gauss=int(numpy['has_gauss']),
            gauss=float(numpy['gauss']),
        ),
        torch=torch_cpu,
    )
    if torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put back what :func:`random_state` gave; its tensors may be on any device by now."""
    python, numpy = state['python'], state['numpy']
    words = numpy['words'].cpu().numpy().astype(np.uint32)
    set_host_state(
        (
            (python['version'], tuple(python['words'].tolist()), python['gauss']),
            dict(
                bit_generator=numpy['bit_generator'],
                state=dict(key=words, pos=numpy['position']),
                has_gauss=numpy['has_gauss'],
                gauss=numpy['gauss'],
            ),
            state['torch'].cpu(),
        )
    )
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())


def seed_sample(seed: int, epoch: int, position: int) -> None:
    """Seed the generators on the CPU for one sample, as a function of these three alone.

    GPU generators stay: they belong to the model.

    Args:
        seed: Of the run.
        epoch: The pass over the data, from 0.
        position: Of the sample in that pass, over all processes, from 0.
    """
    # numpy's way to spread a few numbers over many bits. Each generator gets words of its own:
    # Python's and numpy's are the same algorithm and would give the same numbers from one seed.
    entropy = np.random.SeedSequence((seed, epoch, position)).generate_state(8)
    random.seed(int.from_bytes(entropy[:2].tobytes(), 'little'))
    np.random.seed(entropy[2:6])
    torch.default_generator.manual_seed(int.from_bytes(entropy[6:].tobytes(), 'little') >> 1)
