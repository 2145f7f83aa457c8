"""Normalisation layers by config: mmvim's registry first, then the default scope.

mmcv builds its norm layers by another library's rules and does not know ``RMSNorm``.
"""

from __future__ import annotations

from typing import Any

import torch
from mmengine.registry import DefaultScope
from torch import nn

from mmvim.registry import MODELS
from mmvim_ops.functional import add_rms_norm


@MODELS.register_module()
class RMSNorm(nn.RMSNorm):
    """Root-mean-square normalisation that can add a block's output to the stream on the way.

    Args:
        *args (Any): Those of ``torch.nn.RMSNorm``.
        **kwargs (Any): Those of ``torch.nn.RMSNorm``.
    """

    def forward(
        self, x: torch.Tensor, stream: torch.Tensor | None = None, backend: str = 'auto'
    ) -> Any:
        """Normalise the last axis.

        Args:
            x (torch.Tensor): Shape (..., D).
            stream (torch.Tensor | None): (B, L, D), to which ``x`` is added first. Defaults to
                None.
            backend (str): ``backend`` of :mod:`mmvim_ops` for the sum. Defaults to 'auto'.

        Returns:
            torch.Tensor | tuple[torch.Tensor, torch.Tensor]: The normalised tensor; with
            ``stream`` also the sum.
        """
        if stream is None:
            return super().forward(x)
        if self.weight is None:
            total = stream + x
            return super().forward(total), total
        eps = torch.finfo(stream.dtype).eps if self.eps is None else self.eps
        return add_rms_norm(stream, x, self.weight, eps, backend)


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


def build_norm(norm_cfg: dict[str, Any], num_features: int) -> nn.Module:
    """Build the normalisation of a token's channels.

    Args:
        norm_cfg (dict): ``type`` and the arguments of the layer, which takes the number of
            channels first; e.g. ``dict(type='RMSNorm', eps=1e-5)`` or ``dict(type='LN')``.
        num_features (int): Number of channels D.

    Returns:
        nn.Module: A layer on tensors of shape (..., D).

    Raises:
        ValueError: If the type is missing or known to no registry.
        TypeError: If the layer does not take one of the arguments.
    """
    if not isinstance(norm_cfg, dict) or 'type' not in norm_cfg:
        raise ValueError(
            f"norm_cfg must be a dict with a 'type', such as dict(type='RMSNorm', eps=1e-5) or "
            f"dict(type='LN', eps=1e-6); got {norm_cfg!r}."
        )
    args = dict(norm_cfg)
    requires_grad = args.pop('requires_grad', True)
    layer_type = args.pop('type')
    if isinstance(layer_type, str):
        layer = MODELS.get(layer_type)
        scope = DefaultScope.get_current_instance()
        if layer is None and scope is not None:
            layer = MODELS.get(f'{scope.scope_name}.{layer_type}')
        if layer is None:
            raise ValueError(
                f'norm_cfg type {layer_type!r} is in no registry; valid are RMSNorm, LN and '
                'every normalisation over the last axis that a library in use registers '
                "(with its scope, as 'mmpretrain.LN2d')."
            )
    else:
        layer = layer_type
    norm: nn.Module = layer(num_features, **args)
    for param in norm.parameters():
        param.requires_grad = requires_grad
    return norm
