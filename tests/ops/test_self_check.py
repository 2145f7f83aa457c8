"""The comparison with pure torch that comes before auto takes CUDA kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmvim_ops import self_check
from mmvim_ops.backends.chunked import CHUNKED

CPU = torch.device('cpu')


@pytest.mark.parametrize('grad', [True, False])
def test_the_emulated_cuda_kernels_pass(grad: bool, emulated: Any) -> None:
    """With every split, whether gradients are wanted around it or not."""
    for forward, backward in ((0, 0), (1, 4), (2, 8), (16, 16)):
        emulated.force_splits(forward, backward)
        with torch.set_grad_enabled(grad), torch.inference_mode(not grad):
            assert self_check.difference(emulated.backend, CHUNKED, CPU) is None


def test_it_changes_no_random_numbers(emulated: Any) -> None:
    state = torch.get_rng_state()
    self_check.difference(emulated.backend, CHUNKED, CPU)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize('name', ['bi_conv1d_silu', 'add_rms_norm'])
@pytest.mark.parametrize('factor', [1.001, float('nan')])
def test_wrong_results_are_found(
    name: str, factor: float, emulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(emulated.backend, name)

    def wrong(*args: Any) -> tuple[Tensor, ...]:
        first, *others = right(*args)
        return (first * factor, *others)

    monkeypatch.setattr(emulated.backend, name, wrong)
    found = self_check.difference(emulated.backend, CHUNKED, CPU)
    assert found is not None and '16 states in torch.float32 differs by' in found


@pytest.mark.parametrize('index', range(13))
def test_wrong_gradients_are_found(
    index: int, emulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any of those of the scan, by a hundredth."""
    family = emulated.backend.family
    right = family.bidirectional_selective_scan_backward

    def wrong(*args: Any) -> list[Tensor]:
        grads = list(right(*args))
        grads[index] = grads[index] * 1.01
        return grads

    patched = family._replace(bidirectional_selective_scan_backward=wrong)
    monkeypatch.setattr(emulated.backend, 'family', patched)
    found = self_check.difference(emulated.backend, CHUNKED, CPU)
    assert found is not None and 'differs by' in found


@pytest.mark.parametrize('kind', ['one state', 'no gate', 'wide sums'])
def test_every_kind_of_scan_is_compared(
    kind: str, emulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = emulated.backend.family
    right = family.bidirectional_selective_scan

    def wrong(*args: Any) -> tuple[Tensor, Tensor]:
        out, checkpoints = right(*args)
        A, z, wide_out = args[8], args[12], args[14]
        hit = {'one state': A.shape[1] == 1, 'no gate': z is None, 'wide sums': wide_out}[kind]
        return (out * 1.1 if hit else out), checkpoints

    patched = family._replace(bidirectional_selective_scan=wrong)
    monkeypatch.setattr(emulated.backend, 'family', patched)
    assert self_check.difference(emulated.backend, CHUNKED, CPU) is not None
