"""What our backbones share: taps and their norms, tokens with a position, frozen parts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from mmengine.logging import MMLogger
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmvim.models.arguments import check_choice, parse_out_indices
from mmvim.models.base_module import CheckedModule
from mmvim.models.layers.norm import build_norm, normalise
from mmvim.models.pos_embed import fit_pos_embed

if TYPE_CHECKING:
    from typing_extensions import Self

# Names of the parameters that are token rows.
TOKENS = ('cls_token', 'pos_embed', 'cls_pos_embed')


class BaseBackbone(CheckedModule):
    """A backbone of ``depth`` units, blocks or stages, each of which may be tapped.

    A derived class calls :meth:`_set_up_position` for its position embedding,
    :meth:`_set_up_taps`, builds its units down to the deepest tap, calls :meth:`_set_up_norms`, and
    says in :meth:`_frozen_modules` what ``frozen_stages`` means.
    """

    OUT_NORMS = ('none', 'last', 'all')
    INTERPOLATE_MODES = ('bicubic', 'bilinear', 'nearest')

    in_channels: int
    embed_dims: int

    def _set_up_position(self, grid: tuple[int, int], pos_embed: bool, mode: str) -> None:
        """Make the position embedding of a patch grid, (1, H·W, D), if there shall be one.

        The grid of its rows is saved beside them: their number alone does not tell 4x9 from 6x6.
        """
        check_choice('interpolate_mode', mode, self.INTERPOLATE_MODES)
        self.grid_size = grid
        self.interpolate_mode = mode
        self.pos_embed = self._rows(math.prod(grid) if pos_embed else 0)
        self.pos_embed_grid: torch.Tensor | None
        self.register_buffer('pos_embed_grid', torch.tensor(grid) if pos_embed else None)
        self._register_load_state_dict_pre_hook(self._fit_state_dict)

    def _set_up_taps(
        self,
        units: str,
        depth: int,
        out_indices: int | Sequence[int],
        out_norm: str,
        out_type: str,
        frozen_stages: int,
        with_cp: bool,
    ) -> None:
        """Keep what is tapped, of ``depth`` units that errors call ``units``.

        Raises:
            ValueError: If an argument has no valid value.
        """
        check_choice('out_norm', out_norm, self.OUT_NORMS)
        if type(frozen_stages) is not int or not -1 <= frozen_stages <= depth:
            raise ValueError(
                f'frozen_stages must be an int in -1 … {depth} (the number of {units}), '
                f'got {frozen_stages!r}.'
            )
        self.out_indices = parse_out_indices(out_indices, depth, units)
        self._deepest = max(self.out_indices)
        self.out_norm = out_norm
        self.out_type = out_type
        self.frozen_stages = frozen_stages
        self.with_cp = with_cp

    def _set_up_norms(self, norm_cfg: dict[str, Any], dims: Sequence[int]) -> None:
        """Build the norms of the taps, given the channels of every unit's output."""
        if self.out_norm != 'none':
            self.norm_f = build_norm(norm_cfg, dims[self._deepest])
        normed = [i for i in self.out_indices if self.out_norm == 'all' and i != self._deepest]
        self.tap_norms = nn.ModuleDict({str(i): build_norm(norm_cfg, dims[i]) for i in normed})

    def _rows(self, count: int) -> nn.Parameter | None:
        """A parameter of ``count`` token rows, (1, count, D), or None for no rows."""
        return nn.Parameter(torch.empty(1, count, self.embed_dims)) if count else None

    def _tokens(self) -> list[nn.Parameter]:
        """The class tokens and position embeddings that there are."""
        found = (getattr(self, name, None) for name in TOKENS)
        return [param for param in found if param is not None]

    def _reset_tokens(self) -> None:
        """Draw tokens and position embeddings with a standard deviation of 0.02, as published."""
        for tokens in self._tokens():
            nn.init.trunc_normal_(tokens, std=0.02)
        if self.pos_embed_grid is not None:
            self.pos_embed_grid.copy_(torch.tensor(self.grid_size))

    def _fit_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Resize the patch rows of a state dict that was made for another grid."""
        name = prefix + 'pos_embed'
        if self.pos_embed is None:
            return
        if name in state_dict:
            given, stored = state_dict[name], state_dict.get(name + '_grid')
            try:
                fitted = fit_pos_embed(given, stored, self.grid_size, self.interpolate_mode)
            except ValueError as error:
                raise ValueError(
                    f'{name} does not fit the grid of {self.grid_size} of this model: {error}'
                ) from None
            if fitted is not given:
                MMLogger.get_current_instance().info(
                    f'Resize {name} of {given.shape[1]} rows to a grid of {self.grid_size} '
                    f'({self.interpolate_mode}).'
                )
            state_dict[name] = fitted
        # Not the buffer's own value, which a model from the meta device does not have. Where a
        # loaded tensor takes the place of the buffer, it lies beside the rows.
        rows = state_dict.get(name, self.pos_embed)
        device = 'cpu' if rows.is_meta else rows.device
        state_dict[name + '_grid'] = torch.tensor(self.grid_size, device=device)

    def unbuilt_keys(self, keys: Iterable[str], prefix: str = '') -> list[str]:
        """Those of a state dict's keys that are of units behind the deepest tap, not built.

        Args:
            keys (Iterable[str]): Of a state dict of this backbone with other taps.
            prefix (str): What they begin with. Defaults to ''.
        """
        starts = tuple(prefix + start for start in self._unbuilt())
        return [key for key in keys if key.startswith(starts)]

    def _unbuilt(self) -> list[str]:
        """What the keys of parts behind the deepest tap begin with."""
        raise NotImplementedError

    def _skip_unbuilt(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Leave parts that are not built out of a state dict."""
        keys = self.unbuilt_keys(state_dict, prefix)
        for key in keys:
            del state_dict[key]
        if keys:
            starts = self._unbuilt()
            parts = ' to '.join(dict.fromkeys(s.rstrip('.') for s in (starts[0], starts[-1])))
            MMLogger.get_current_instance().info(
                f'Skip {len(keys)} tensors of {parts}: they lie behind the deepest tap and are not '
                'built.'
            )

    def _frozen_modules(self) -> list[nn.Module]:
        """The modules that ``frozen_stages`` freezes, if it is not -1; all tokens are frozen too.

        Those of all units: with the output norms.
        """
        raise NotImplementedError

    def _output_norms(self) -> list[nn.Module]:
        return [self.tap_norms, *([self.norm_f] if self.out_norm != 'none' else [])]

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        for module in self._frozen_modules():
            module.eval().requires_grad_(False)
        for tokens in self._tokens():
            tokens.requires_grad = False

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        if mode:
            self._freeze_stages()
        return self

    def _check_image(self, image: torch.Tensor) -> None:
        """Raise ValueError unless an image batch has the right shape."""
        shape = image.shape
        if len(shape) != 4 or shape[1] != self.in_channels or shape[2] == 0 or shape[3] == 0:
            raise ValueError(
                f'expected an image batch of shape (B, {self.in_channels}, H, W), got '
                f'{tuple(image.shape)}; in_channels sets the number of channels.'
            )

    def _call(self, block: nn.Module, *args: Any) -> Any:
        """Run a block, with ``with_cp`` without saving its activations."""
        if self.with_cp and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)

    def _normalise(self, tokens: torch.Tensor, index: int, dtype: torch.dtype) -> torch.Tensor:
        """Apply the output norm of tap ``index``, if it has one, to tokens (B, L, D)."""
        norm = getattr(self, 'norm_f', None) if index == self._deepest else None
        if str(index) in self.tap_norms:
            norm = self.tap_norms[str(index)]
        return tokens if norm is None else normalise(norm, tokens, dtype)

    def _no_decay(self, names: Iterable[str]) -> set[str]:
        """Names of the parameters one of whose parts is among ``names``, and of all tokens."""
        kept = {*TOKENS, *names}
        params = (name for name, _ in self.named_parameters())
        # Pruned they are called …_orig, and parametrizations.A_log.original.
        return {n for n in params if kept & {part.removesuffix('_orig') for part in n.split('.')}}
