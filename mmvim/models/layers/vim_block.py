"""One block of Vision Mamba: add, normalise, mix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mmcv.cnn.bricks import DropPath
from torch import nn

from mmvim.models.layers.norm import add_and_normalise, build_norm, epsilon_of, normalise
from mmvim.models.layers.plain import is_as_built
from mmvim.models.layers.vim_mixer import VimMixer
from mmvim_ops.backends import select
from mmvim_ops.differentiation import is_plain_call


class VimBlock(nn.Module):
    """A pre-norm residual block whose mixer output is added by the *next* block.

    ``residual += drop_path(hidden); hidden = mixer(norm(residual))`` (Vim, Alg. 1, in the form
    the published code runs it). The residual stream stays in at least float32.

    Args:
        embed_dims (int): Number of channels D.
        norm_cfg (dict): Config of the normalisation.
        drop_path_rate (float): Probability to drop the block's *input* branch, that is the
            previous block's output, as published. Defaults to 0.
        scan_backend (str): ``backend`` of :mod:`mmvim_ops`. Defaults to 'auto'.
        **mixer (Any): The other arguments of :class:`VimMixer`.
    """

    def __init__(
        self,
        embed_dims: int,
        norm_cfg: dict[str, Any],
        drop_path_rate: float = 0.0,
        scan_backend: str = 'auto',
        **mixer: Any,
    ) -> None:
        super().__init__()
        self.norm = build_norm(norm_cfg, embed_dims)
        self.mixer = VimMixer(embed_dims, scan_backend=scan_backend, **mixer)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()
        self.scan_backend = scan_backend

    def forward(
        self, hidden: torch.Tensor, residual: torch.Tensor | None, reverse: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the block.

        Args:
            hidden (torch.Tensor): Output of the previous mixer, or the tokens, (B, L, D).
            residual (torch.Tensor | None): Residual stream before ``hidden`` was added,
                (B, L, D); None for the first block, where ``hidden`` starts the stream.
            reverse (bool): See :meth:`VimMixer.forward`. Defaults to False.

        Returns:
            tuple[torch.Tensor, torch.Tensor]: The mixer's output, and the stream it was computed
            from, to which the output has not been added yet; both (B, L, D).
        """
        if residual is None:
            residual = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
            normed = normalise(self.norm, residual, hidden.dtype)
        else:
            hidden = self.drop_path(hidden)
            normed, residual = add_and_normalise(self.norm, residual, hidden, self.scan_backend)
        # The tokens alone where they suffice: a layer in the mixer's place takes no more.
        return self.mixer(normed, reverse) if reverse else self.mixer(normed), residual

    def as_op(self, stream: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """The op that may take the place of :meth:`forward`, ``x + mixer(norm(x))``.

        Args:
            stream (torch.Tensor): A residual stream of this dtype and device, (B, L, D).

        Returns:
            Callable[[torch.Tensor], torch.Tensor] | None: From the stream before the block,
            (B, L, D), to that behind it. None where one op gains nothing, or a part of the block
            does more than its parameters say: hooks, adapters, dropped paths.

        Raises:
            ValueError: If the shapes of the parameters do not fit.
        """
        # Asked first: whoever follows a call would see A made of A_log, and perhaps for nothing.
        if torch.is_grad_enabled() or self.training or stream.device.type != 'cpu':
            return None
        if not is_plain_call():
            return None
        mixer, norm = self.mixer, self.norm
        if not is_as_built(self, VimBlock, _FORWARD) or not isinstance(mixer, VimMixer):
            return None
        weights = mixer.block_weights(norm)
        if weights is None:
            return None
        states, rank = weights.forward.A.shape[1], weights.forward.dt_weight.shape[1]
        chosen = select(self.scan_backend, stream.device, stream.dtype, states, rank)
        operator = chosen.whole_block(stream, weights)
        if operator is None:
            return None
        assert isinstance(norm, nn.RMSNorm)
        weights.check(stream.shape[2])
        eps, scale = epsilon_of(norm, stream.dtype), mixer.scale
        return lambda x: operator(x, weights, eps, scale)


_FORWARD = VimBlock.forward
