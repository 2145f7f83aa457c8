"""The base class of our backbones, necks and heads."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from mmengine.model import BaseModule
from torch import nn

from mmvim.models.arguments import unknown_name

if TYPE_CHECKING:
    from typing_extensions import Self


class CheckedModule(BaseModule):
    """A module that answers a misspelt argument with the nearest valid one.

    It may be built on the meta device: after ``to_empty``, ``init_weights`` draws all that the
    constructor would have drawn. Weights that are loaded come after that, or take its place with
    ``load_state_dict(…, assign=True)``.
    """

    _empty = False

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Check the keywords."""
        _, *own = inspect.signature(cls.__init__).parameters.values()
        takes_any = own[-1].kind is inspect.Parameter.VAR_KEYWORD
        unknown = unknown_name(kwargs, [parameter.name for parameter in own])
        if unknown and not takes_any:
            raise TypeError(f'{cls.__name__} has no argument {unknown}')
        return super().__new__(cls)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Note whether the tensors are replaced by empty ones, which nothing about them tells."""
        super()._apply(fn, recurse)
        self._empty = self._empty or 'to_empty' in getattr(fn, '__qualname__', '')
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: dict[str, Any], *args: Any
    ) -> None:
        """Refuse to copy values into tensors that have no memory, of which torch only warns."""
        super()._load_from_state_dict(state_dict, prefix, metadata, *args)
        whole = all(prefix + name in state_dict for name in self.state_dict())
        self._empty = self._empty and not whole
        lost = (
            param.is_meta and not getattr(state_dict.get(prefix + name), 'is_meta', True)
            for name, param in self.named_parameters()
        )
        if any(lost) and not metadata.get('assign_to_params_buffers'):
            args[-1].append(self._on_meta())  # the messages of torch's error

    def init_weights(self) -> None:
        """Draw what ``to_empty`` left undrawn, then initialise as ``init_cfg`` says.

        Raises:
            RuntimeError: If a part is still on the meta device, or cannot be drawn.
        """
        if any(tensor.is_meta for tensor in (*self.parameters(), *self.buffers())):
            raise RuntimeError(self._on_meta())
        # Children before the modules that have them.
        for module in reversed([*self.modules()]) if self._empty else ():
            if hasattr(module, 'reset_parameters'):
                module.reset_parameters()
            elif module._parameters or module._buffers:
                raise RuntimeError(
                    f'{type(module).__name__} has no reset_parameters() to draw it with after '
                    'to_empty: load its weights instead.'
                )
            self._is_init = False
        self._empty = False
        super().init_weights()

    def _on_meta(self) -> str:
        return (
            f'{type(self).__name__} is on the meta device: call to_empty(device=…) before its '
            'weights are drawn or copied, or load_state_dict(…, assign=True).'
        )


def check_whole(module: nn.Module) -> None:
    """Refuse to draw a module whose children are not there yet: they would be drawn otherwise.

    Raises:
        RuntimeError: If some of its parameters are on the meta device and some are not.
    """
    if len({param.is_meta for param in module.parameters()}) > 1:
        raise RuntimeError(
            f'a part of {type(module).__name__} is on the meta device: call to_empty(device=…) and '
            'init_weights() of the whole model, rather than reset_parameters() one by one.'
        )
