"""The operators of the CUDA kernels, emulated on the CPU: opcheck, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from mmvim_ops_by_name import bidirectional
from torch import Tensor

import mmvim_ops

Inputs = Callable[..., dict[str, Tensor]]
SELECTIVE = ('u', 'delta', 'A', 'B', 'C', 'D', 'z', 'delta_bias')
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
pytestmark = pytest.mark.usefixtures('emulated')


def operator(name: str) -> Any:
    return getattr(torch.ops.mmvim_emulated, name).default


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('optional', [True, False])
def test_opcheck_selective_scan(dtype: torch.dtype, optional: bool, scan_inputs: Inputs) -> None:
    inputs = scan_inputs(L=70, groups=2, dtype=dtype)
    tensors: list[Tensor | None] = [inputs[name].requires_grad_() for name in SELECTIVE]
    if not optional:
        tensors[1] = inputs['delta'].detach().abs().requires_grad_()
        tensors[5:] = [None, None, None]
    torch.library.opcheck(operator('selective_scan'), (*tensors, optional, optional, 2, 32))


@pytest.mark.parametrize('dtype', DTYPES)
def test_opcheck_bidirectional(dtype: torch.dtype, bidirectional_inputs: Inputs) -> None:
    tensors = [t.requires_grad_() for t in bidirectional_inputs(L=70, dtype=dtype).values()]
    torch.library.opcheck(operator('bidirectional_selective_scan'), (*tensors, 0.5, False, 32))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('deterministic', [False, True])
def test_opcheck_backwards(
    dtype: torch.dtype, deterministic: bool, scan_inputs: Inputs, bidirectional_inputs: Inputs
) -> None:
    """The backward operators have schemas and shape rules of their own."""
    p = scan_inputs(L=70, groups=2, dtype=dtype)
    tensors = [p[name] for name in SELECTIVE]
    options = (True, True, 2, 32)
    out, last_state, checkpoints = operator('selective_scan')(*tensors, *options)
    for grad_last_state, needs in (
        (last_state, [True] * 8),
        (None, [True, False] * 4),
        (last_state, [False, True] * 4),
    ):
        torch.library.opcheck(
            operator('selective_scan_backward'),
            (out, grad_last_state, *tensors, checkpoints, *options, needs, deterministic),
        )
    tensors = list(bidirectional_inputs(L=70, dtype=dtype).values())
    out, checkpoints = operator('bidirectional_selective_scan')(*tensors, 0.5, False, 32)
    for needs in ([True] * 13, [True, False] * 6 + [False], [False, True] * 6 + [True]):
        torch.library.opcheck(
            operator('bidirectional_selective_scan_backward'),
            (out, *tensors, checkpoints, 0.5, 32, needs, deterministic),
        )


@pytest.mark.parametrize(('N', 'R'), [(33, 3), (64, 3), (16, 129), (33, 129)])
def test_more_states_or_ranks_than_there_are_kernels_for(
    N: int, R: int, scan_inputs: Inputs, bidirectional_inputs: Inputs
) -> None:
    says = r'up to 32 states and 128 dt columns, got {} and {}; use backend=.chunked.'
    with pytest.raises(RuntimeError, match=says.format(N, R)):
        bidirectional(**bidirectional_inputs(N=N, R=R, dtype=torch.float32), backend='cpu')
    if N > 32:
        with pytest.raises(RuntimeError, match=says.format(N, 0)):
            mmvim_ops.selective_scan(**scan_inputs(N=N, dtype=torch.float32), backend='cpu')


@pytest.mark.parametrize('chunk', [1, 31, 33, 48, 69])
def test_a_chunk_that_is_no_number_of_tiles(
    chunk: int, scan_inputs: Inputs, bidirectional_inputs: Inputs
) -> None:
    one = scan_inputs(L=70, dtype=torch.float32)
    both = bidirectional_inputs(L=70, dtype=torch.float32)
    says = f'a chunk that is a multiple of 32 or covers all tokens, got {chunk}'
    with pytest.raises(RuntimeError, match=says):
        operator('selective_scan')(*(one[name] for name in SELECTIVE), True, False, 1, chunk)
    with pytest.raises(RuntimeError, match=says):
        operator('bidirectional_selective_scan')(*both.values(), 0.5, False, chunk)


def test_no_chunk(scan_inputs: Inputs) -> None:
    one = scan_inputs(dtype=torch.float32)
    for chunk in (0, -32):
        with pytest.raises(RuntimeError, match='chunk must be at least 1'):
            operator('selective_scan')(*(one[name] for name in SELECTIVE), True, False, 1, chunk)


def test_other_dtypes(scan_inputs: Inputs) -> None:
    """Called without the checks of the functions: an error, no misread memory."""
    one = scan_inputs(dtype=torch.float32)
    for name in ('u', 'delta', 'B', 'z'):
        some = one | {name: one[name].double()}
        with pytest.raises(RuntimeError, match=r'take float32, bfloat16 and float16; convert'):
            operator('selective_scan')(*(some[n] for n in SELECTIVE), True, False, 1, 32)


def test_a_split_that_has_no_kernel(scan_inputs: Inputs, emulated: Any) -> None:
    scan = partial(mmvim_ops.selective_scan, **scan_inputs(N=16, dtype=torch.float32))
    emulated.force_splits(3, 0)
    with pytest.raises(RuntimeError, match='no kernel splits a channel among 3 threads'):
        scan(backend='cpu')


def test_more_states_of_a_chunk_than_fit(
    bidirectional_inputs: Inputs, emulated: Any, value_and_grads: Inputs
) -> None:
    """The backward pass of a long chunk needs them all in shared memory."""
    emulated.use_chunk(8192)
    inputs = bidirectional_inputs(B=1, L=4096, E=1, N=16, R=1, dtype=torch.float32)
    with pytest.raises(RuntimeError, match=r'needs \d+ bytes .* this device has 232448: .*chunked'):
        value_and_grads(bidirectional, inputs, backend='cpu')


def test_smallest_and_largest_ranks_and_states(
    bidirectional_inputs: Inputs, value_and_grads: Inputs, assert_close: Any
) -> None:
    for N, R in ((1, 1), (1, 128), (16, 128), (32, 1), (32, 128)):
        inputs = bidirectional_inputs(B=2, L=70, E=24, N=N, R=R, dtype=torch.float32)
        exact = {name: tensor.double() for name, tensor in inputs.items()}
        scan = bidirectional
        expected = value_and_grads(scan, exact, backend='reference')
        assert_close(value_and_grads(scan, inputs, backend='cpu'), expected, where=(N, R))
