"""The classifier of the paper's max-pool ablation, for mmpretrain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from mmvim.models.base_module import CheckedModule
from mmvim.registry import MODELS


@MODELS.register_module()
class MaxPoolClsHead(CheckedModule):
    """Classifies every token and takes the greatest score of each class over the tokens.

    The 'max pool' of `Vision Mamba <https://arxiv.org/abs/2401.09417>`_ (Sec. 4.4, Tab. 5): the
    linear layer comes before the maximum. It reads ``out_type='raw'`` of a backbone with
    ``cls_token='none'``, or the maps of one that gives maps alone. Parameters and arguments are
    those of mmpretrain's ``LinearClsHead``; loss and prediction are left to mmpretrain, which has
    to be installed.

    Args:
        num_classes (int): Number of classes.
        in_channels (int): Channels of a token.
        loss (dict): Config of the loss.
            Defaults to ``dict(type='CrossEntropyLoss', loss_weight=1.0)``.
        topk (int | Sequence[int]): Which accuracies ``cal_acc`` logs. Defaults to (1, ).
        cal_acc (bool): Whether to log the accuracy in training, where labels are not mixed.
            Defaults to False.
        init_cfg (dict, optional): Initialisation config of mmengine.
            Defaults to ``dict(type='Normal', layer='Linear', std=0.01)``.

    Raises:
        TypeError: If an argument does not exist; the message names the nearest one.
        ValueError: If a number of classes or channels is not positive.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        loss: dict[str, Any] = dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk: int | Sequence[int] = (1,),
        cal_acc: bool = False,
        init_cfg: dict[str, Any] | None = dict(type='Normal', layer='Linear', std=0.01),
    ) -> None:
        super().__init__(init_cfg)
        if min(num_classes, in_channels) < 1:
            raise ValueError(
                f'num_classes and in_channels must be positive, got {num_classes} and '
                f'{in_channels}.'
            )
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.fc = nn.Linear(in_channels, num_classes)
        # Has no parameters: what it is given are the scores.
        self.scored = MODELS.build(
            dict(type='mmpretrain.ClsHead', loss=loss, topk=topk, cal_acc=cal_acc)
        )

    def forward(self, feats: Sequence[torch.Tensor]) -> torch.Tensor:
        """Score the classes.

        Args:
            feats (Sequence[torch.Tensor]): Tokens (B, L, in_channels) or maps
                (B, in_channels, H, W) of each tap; the last counts.

        Returns:
            torch.Tensor: Scores (B, num_classes) before the softmax.

        Raises:
            ValueError: If the last tap is neither with ``in_channels`` channels.
        """
        tokens = feats[-1]
        if tokens.ndim == 4:
            tokens = tokens.flatten(2).transpose(1, 2)
        if tokens.ndim != 3 or tokens.shape[2] != self.in_channels:
            raise ValueError(
                f'MaxPoolClsHead reads tokens (B, L, {self.in_channels}), got '
                f"{tuple(tokens.shape)}: set out_type='raw' in the backbone, and in_channels to "
                'its embed_dims.'
            )
        return self.fc(tokens).max(dim=1).values

    def loss(
        self, feats: Sequence[torch.Tensor], data_samples: Sequence[Any], **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """Losses by name, as mmpretrain's ``ClsHead`` computes them from the scores."""
        return self.scored.loss((self(feats),), data_samples, **kwargs)

    def predict(
        self, feats: Sequence[torch.Tensor], data_samples: Sequence[Any] | None = None
    ) -> list[Any]:
        """Data samples with predicted label and scores, as mmpretrain's ``ClsHead`` gives them."""
        return self.scored.predict((self(feats),), data_samples)
