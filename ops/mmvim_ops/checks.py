"""Checks of the ops' arguments, and their messages."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from mmvim_ops.precision import wide_dtype

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_tensors(lead: str, tensors: dict[str, Tensor]) -> None:
    """Raise unless all are floating tensors on one device, and all or none of them float64."""
    first = tensors[lead]
    if are_alike(first, tensors.values()):
        return
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f'{name} must be a Tensor, got {type(tensor).__name__}')
        if tensor.dtype not in _DTYPES:
            valid = 'float16, bfloat16, float32 or float64'
            raise TypeError(f'{name} has dtype {tensor.dtype}; valid: {valid}')
    for name, tensor in tensors.items():
        if tensor.device != first.device:
            raise ValueError(f'{name} is on {tensor.device} and {lead} on {first.device}; move one')
        if (tensor.dtype == torch.float64) != (first.dtype == torch.float64):
            raise TypeError(
                f'{name} is {tensor.dtype} and {lead} {first.dtype}; float64 does not mix with '
                'other dtypes: convert all inputs or none'
            )


def are_alike(first: object, tensors: Iterable[object]) -> bool:
    """Whether all are floating tensors of one dtype on one device, as in most calls."""
    if not isinstance(first, Tensor):
        return False
    dtype, device = first.dtype, first.device
    return dtype in _DTYPES and all(
        isinstance(tensor, Tensor) and tensor.dtype == dtype and tensor.device == device
        for tensor in tensors
    )


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...], letters: str) -> None:
    """Raise unless the tensor has this shape, named by its letters."""
    if tensor.shape != shape:
        raise ValueError(
            f'{name} has shape {tuple(tensor.shape)}; expected {letters} = {tuple(shape)}'
        )


def check_sizes(name: str, tensor: Tensor, letters: str) -> None:
    """Raise unless the tensor has one dimension a letter, none empty but the batch B."""
    shape = tensor.shape
    if len(shape) != letters.count(',') + 1:
        raise ValueError(
            f'{name} has {len(shape)} dimensions, shape {tuple(shape)}; expected {letters}'
        )
    if 0 not in shape:
        return
    for letter, size in zip(letters.strip('()').split(', '), shape):
        if letter != 'B' and size < 1:
            raise ValueError(
                f'{name} has shape {tuple(shape)}; expected {letters} with {letter} >= 1'
            )


def check_flag(name: str, value: bool) -> None:
    """Raise unless the value is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f'{name} must be True or False, got {value!r}')


def given(**tensors: Tensor | None) -> dict[str, Tensor]:
    """The tensors that are not None."""
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def check_conv(x: Tensor, weight_name: str, weight: Tensor, bias_name: str, bias: object) -> None:
    """Raise unless weight and bias of a convolution fit its input (B, L, E)."""
    check_sizes(weight_name, weight, '(E, W)')
    check_shape(weight_name, weight, (x.shape[2], weight.shape[1]), '(E, W)')
    if isinstance(bias, Tensor):
        check_shape(bias_name, bias, (x.shape[2],), '(E,)')


def check_scale(scale: float) -> None:
    """Raise unless the factor of a sum is a finite number."""
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise TypeError(f'scale must be a float, got {type(scale).__name__}')
    if not -math.inf < scale < math.inf:  # isfinite does not trace with a symbolic float
        raise ValueError(f'scale={scale} is not finite; 0.5 averages the directions, 1 sums them')


def check_eps(eps: float) -> None:
    """Raise unless what a normalisation adds to the mean of the squares is a number >= 0."""
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or eps < 0:
        raise ValueError(f'eps must be a number >= 0, got {eps!r}')


def check_out_dtype(out_dtype: torch.dtype | None, dtype: torch.dtype) -> None:
    """Raise unless a result can be returned in this dtype, given that of the inputs."""
    if out_dtype not in (None, wide_dtype(dtype)):
        raise ValueError(
            f'out_dtype={out_dtype} is not valid for inputs of {dtype}; choose None (that of x) or '
            f'{wide_dtype(dtype)}'
        )


def check_tuple(name: str, value: object, kind: type) -> None:
    """Raise unless the value is one of our named tuples."""
    if not isinstance(value, kind):
        raise TypeError(f'{name} must be a {kind.__name__}, got {type(value).__name__}')
