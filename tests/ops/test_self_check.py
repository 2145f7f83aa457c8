"""The comparison with pure torch that comes before auto takes CUDA kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from mmvim_ops import self_check
from mmvim_ops.backends.chunked import CHUNKED
from mmvim_ops.backends.native import SPLITS

CPU = torch.device('cpu')


@pytest.mark.parametrize('grad', [True, False])
def test_the_emulated_cuda_kernels_pass(grad: bool, emulated: Any) -> None:
    """With every split, whether gradients are wanted around it or not."""
    used: set[tuple[int, int, bool]] = set()

    @contextmanager
    def form(forward: int, backward: int, general: bool) -> Iterator[None]:
        used.add((forward, backward, general))
        emulated.force_splits(forward, backward, general=general)
        yield

    forms = {states: [partial(form, *each) for each in every] for states, every in SPLITS.items()}
    with torch.set_grad_enabled(grad), torch.inference_mode(not grad):
        problem = self_check.difference(
            emulated.backend, CHUNKED, CPU, cases=self_check.CASES, forms=forms
        )
    assert problem is None and used == {each for every in SPLITS.values() for each in every}


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


class _Scaled(torch.autograd.Function):
    """The same number, with a gradient that is a hundredth too large."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 1.01


@pytest.mark.parametrize('index', range(13))
def test_wrong_gradients_are_found(
    index: int, emulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any of those of the scans, by a hundredth."""
    right = emulated.backend.bidirectional_selective_scan

    def wrong(forward: Any, reverse: Any, z: Tensor | None, **options: Any) -> Tensor:
        tensors = [*forward, *reverse, *([] if z is None else [z])]
        if index < len(tensors):
            tensors[index] = _Scaled.apply(tensors[index])
        sides = type(forward)(*tensors[:6]), type(forward)(*tensors[6:12])
        scanned: Tensor = right(*sides, tensors[12] if len(tensors) > 12 else None, **options)
        return scanned

    monkeypatch.setattr(emulated.backend, 'bidirectional_selective_scan', wrong)
    found = self_check.difference(emulated.backend, CHUNKED, CPU)
    assert found is not None and 'differs by' in found


@pytest.mark.parametrize('index', range(2))
def test_every_result_of_a_single_scan_is_compared(
    index: int, emulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With groups, backwards, and whatever kernel the number of states takes."""
    right = emulated.backend.selective_scan
    seen = []

    def wrong(inputs: Any, *options: Any) -> tuple[Tensor, Tensor]:
        seen.append((inputs.A.shape[1], *options))
        results = list(right(inputs, *options))
        if seen[-1][0] == 5:
            results[index] = results[index] * 1.1
        return tuple(results)  # type: ignore[return-value]

    monkeypatch.setattr(emulated.backend, 'selective_scan', wrong)
    found = self_check.difference(
        emulated.backend, CHUNKED, CPU, [torch.float32], (16, 5), self_check.CASES
    )
    assert found is not None
    assert found.startswith(f'result {index} of the single scan with 5 states')
    assert seen == [(16, True, True, 2), (5, True, True, 2)]


@pytest.mark.parametrize('kind', ['one state', 'no gate', 'wide sums'])
def test_every_kind_of_scan_is_compared(
    kind: str, emulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = emulated.backend.family
    right = family.bidirectional_selective_scan

    def wrong(*args: Any) -> tuple[Tensor, Tensor]:
        out, checkpoints = right(*args)
        A, z, wide_out = args[8], args[12], args[14]  # in the order of the schema
        hit = {'one state': A.shape[1] == 1, 'no gate': z is None, 'wide sums': wide_out}[kind]
        return (out * 1.1 if hit else out), checkpoints

    patched = family._replace(bidirectional_selective_scan=wrong)
    monkeypatch.setattr(emulated.backend, 'family', patched)
    assert self_check.difference(emulated.backend, CHUNKED, CPU) is not None
