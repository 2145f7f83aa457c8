"""Addition and normalisation: values, gradients, dtypes, bad input."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

import mmvim_ops
from mmvim_ops import loading, reference

BACKENDS = [
    'chunked',
    pytest.param('cpu', marks=pytest.mark.skipif(bool(loading.problem()), reason='not built')),
    pytest.param('cuda', marks=pytest.mark.skipif(bool(loading.cuda_problem()), reason='no CUDA')),
]


def inputs(B: int, L: int, C: int, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(B + L + C)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {'x': randn(B, L, C), 'added': randn(B, L, C).to(dtype), 'weight': randn(C)}


def placed(tensors: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
    device = 'cuda' if backend == 'cuda' else 'cpu'
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def both(function: Callable[..., tuple[Tensor, Tensor]], **tensors: Tensor) -> Tensor:
    """Both results in one tensor, so that gradients reach the inputs through either."""
    return torch.stack([result.to(tensors['x'].dtype) for result in function(**tensors)])


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('shape', [(1, 1, 1), (2, 65, 192), (3, 130, 37), (1, 64, 16), (2, 3, 768)])
def test_values_and_gradients(
    backend: str,
    dtype: torch.dtype,
    shape: tuple[int, int, int],
    value_and_grads: Callable[..., dict[str, Tensor]],
    assert_close: Callable[..., None],
) -> None:
    tensors = inputs(*shape, dtype)
    ours = partial(mmvim_ops.add_rms_norm, eps=1e-5, backend=backend)
    actual = value_and_grads(partial(both, ours), placed(tensors, backend))
    wide = {name: tensor.double() for name, tensor in tensors.items()}
    expected = value_and_grads(partial(both, partial(reference.add_rms_norm, eps=1e-5)), wide)
    if dtype != torch.float32:  # the gradient of `added` is rounded to its dtype
        rounded = 'grad of added'
        assert actual[rounded].dtype == dtype
        torch.testing.assert_close(actual.pop(rounded).cpu(), expected.pop(rounded).to(dtype))
    assert_close(actual, expected, (2e-6, 5e-7), (2e-5, 5e-6))


@pytest.mark.parametrize('backend', BACKENDS)
def test_dtypes(backend: str) -> None:
    """The stream keeps its dtype, the normalised tensor takes that of the weight."""
    tensors = inputs(1, 2, 3, torch.bfloat16)
    tensors['weight'] = tensors['weight'].bfloat16()
    normed, total = mmvim_ops.add_rms_norm(**placed(tensors, backend), backend=backend)
    assert (normed.dtype, total.dtype) == (torch.bfloat16, torch.float32)


def test_float64_and_empty_batch() -> None:
    tensors = {name: tensor.double() for name, tensor in inputs(1, 2, 3, torch.float32).items()}
    assert mmvim_ops.add_rms_norm(**tensors)[0].dtype == torch.float64
    normed, total = mmvim_ops.add_rms_norm(**inputs(0, 2, 3, torch.float32))
    assert normed.shape == total.shape == (0, 2, 3)


def test_bad_input_names_the_argument() -> None:
    good = inputs(1, 2, 3, torch.float32)
    with pytest.raises(ValueError, match=r'added has shape \(1, 2, 2\)'):
        mmvim_ops.add_rms_norm(**good | {'added': torch.zeros(1, 2, 2)})
    with pytest.raises(ValueError, match=r'weight has shape \(4,\)'):
        mmvim_ops.add_rms_norm(**good | {'weight': torch.zeros(4)})
    with pytest.raises(ValueError, match='eps must be a number >= 0, got -1'):
        mmvim_ops.add_rms_norm(**good, eps=-1)
    with pytest.raises(TypeError, match=r'added has dtype torch\.int64'):
        mmvim_ops.add_rms_norm(**good | {'added': torch.zeros(1, 2, 3, dtype=torch.long)})
