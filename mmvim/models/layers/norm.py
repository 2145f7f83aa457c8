"""Normalisation layers by config: mmvim's registry first, then the default scope.

mmcv builds its norm layers by another library's rules and does not know ``RMSNorm``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from mmengine.registry import DefaultScope
from torch import nn

from mmvim.models.layers.plain import is_plain
from mmvim.registry import MODELS
from mmvim_ops.functional import add_rms_norm

MODELS.register_module(module=nn.RMSNorm)

_EXAMPLES = "such as dict(type='RMSNorm', eps=1e-5) or dict(type='LN', eps=1e-6)"
# Names of the layer normalisation of maps (B, C, H, W) here, in mmpretrain and in timm.
_OF_MAPS = ('LN2d', 'LayerNorm2d')


@MODELS.register_module()
class LN2d(nn.LayerNorm):
    """Layer normalisation over the channels of a map, for convolutions (``mmvim.LN2d``).

    Args:
        num_channels (int): Number of channels C.
        eps (float): Added to the variance. mmcv's builder passes 1e-5 where a config says
            nothing; ViTDet has 1e-6. Defaults to 1e-6.
        **kwargs (Any): The others of ``torch.nn.LayerNorm``.
    """

    def __init__(self, num_channels: int, eps: float = 1e-6, **kwargs: Any) -> None:
        super().__init__(num_channels, eps=eps, **kwargs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise every position over its channels.

        Args:
            x (torch.Tensor): Shape (B, C, H, W).

        Returns:
            torch.Tensor: Of the same shape, contiguous: a map in channels-last order would hand
            its order on, to operators of mmcv that do not look at strides. Under autocast it is
            float32, on every device.
        """
        x = x.permute(0, 2, 3, 1)
        if self.weight is not None:
            x = x.to(self.weight.dtype)
        return super().forward(x).permute(0, 3, 1, 2).contiguous()


def normalise(norm: nn.Module, stream: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Normalise the residual stream in the dtype of the norm's parameters.

    Args:
        norm (nn.Module): What :func:`build_norm` built.
        stream (torch.Tensor): Shape (B, L, D), at least float32.
        dtype (torch.dtype): Dtype of the result of a norm without parameters.

    Returns:
        torch.Tensor: Shape (B, L, D).
    """
    param = next(norm.parameters(), None)
    return norm(stream).to(dtype) if param is None else norm(stream.to(param.dtype))


def epsilon_of(norm: nn.RMSNorm, dtype: torch.dtype) -> float:
    """What a norm adds to the mean of the squares of this dtype."""
    return torch.finfo(dtype).eps if norm.eps is None else norm.eps


def add_and_normalise(
    norm: nn.Module, stream: torch.Tensor, added: torch.Tensor, backend: str = 'auto'
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add a block's output to the residual stream and normalise the sum, in one op if it can be.

    Args:
        norm (nn.Module): What :func:`build_norm` built.
        stream (torch.Tensor): Shape (B, L, D), at least float32.
        added (torch.Tensor): Shape (B, L, D).
        backend (str): ``backend`` of :mod:`mmvim_ops`. Defaults to 'auto'.

    Returns:
        tuple[torch.Tensor, torch.Tensor]: The normalised sum and the sum.
    """
    if is_plain(norm, nn.RMSNorm):
        assert isinstance(norm, nn.RMSNorm)
        eps = epsilon_of(norm, stream.dtype)
        return add_rms_norm(stream, added, norm.weight, eps, backend)
    total = stream + added
    return normalise(norm, total, added.dtype), total


def build_norm(norm_cfg: dict[str, Any], num_features: int) -> nn.Module:
    """Build the normalisation of a token's channels.

    Args:
        norm_cfg (dict): ``type`` and the arguments of the layer, which takes the number of
            channels first; e.g. ``dict(type='RMSNorm', eps=1e-5)`` or ``dict(type='LN')``.
            'LN2d', of whichever library, is 'LN' here: channels come last, no map is turned.
        num_features (int): Number of channels D.

    Returns:
        nn.Module: A layer on tensors of shape (..., D).

    Raises:
        ValueError: If the type is missing or known to no registry, or its layer does not normalise
            every token over its channels.
        TypeError: If the layer does not take the arguments.
    """
    if not isinstance(norm_cfg, dict) or 'type' not in norm_cfg:
        raise ValueError(f"norm_cfg must be a dict with a 'type', {_EXAMPLES}; got {norm_cfg!r}.")
    args = dict(norm_cfg)
    requires_grad, layer = args.pop('requires_grad', True), args.pop('type')
    if isinstance(layer, str):
        scope = DefaultScope.get_current_instance()
        names = [layer] if scope is None else [layer, f'{scope.scope_name}.{layer}']
        found = next(filter(None, map(MODELS.get, names)), None)
        if found is None:
            raise ValueError(
                f'norm_cfg type {layer!r} is in no registry; valid is a normalisation over '
                f'the last axis, {_EXAMPLES}, or of a library in use, with its scope.'
            )
        layer = found
    if isinstance(layer, type) and issubclass(layer, nn.LayerNorm) and layer.__name__ in _OF_MAPS:
        layer = nn.LayerNorm
    try:
        with torch.device('cpu'):
            _check_last_axis(layer(num_features, **args), num_features)
        norm: nn.Module = layer(num_features, **args)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f'norm_cfg={norm_cfg!r} gives no normalisation of tokens (B, L, {num_features}) over '
            f'their channels, {_EXAMPLES}: {error}'
        ) from error
    return norm.requires_grad_(requires_grad)


@torch.no_grad()
def _check_last_axis(norm: nn.Module, num_features: int) -> None:
    """Try whether a norm treats every token for itself and takes its scale away."""
    # Another number of tokens than of channels: a layer over another axis must not fit by chance.
    shape = (2, 2 + (num_features == 2), num_features)
    tokens = 1e3 * torch.arange(1.0, 1 + math.prod(shape)).sin().view(shape)
    if type(tokens) is not torch.Tensor:
        return  # no numbers to be had: FakeTensorMode
    try:
        normed, alone, doubled = norm(tokens), norm(tokens[:1, :1]), norm(2 * tokens)
        same = normed.shape == tokens.shape and torch.allclose(normed[:1, :1], alone, atol=1e-3)
        if not same or not torch.allclose(normed, doubled, atol=1e-3):
            raise ValueError('what it makes of a token depends on the others, or on its size.')
    except Exception as error:
        raise ValueError(f'{type(error).__name__}: {error}') from error
