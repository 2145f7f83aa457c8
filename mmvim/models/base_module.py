"""The base class of our backbones, necks and heads."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import nn

from mmvim.models.arguments import unknown_name

if TYPE_CHECKING:
    from typing_extensions import Self


class CheckedModule(BaseModule):
    """A module that answers a misspelt argument with the nearest valid one.

    It may be built on the meta device: ``to_empty`` draws all that the constructor would have
    drawn, and ``load_state_dict(…, assign=True)`` needs no memory before.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Check the keywords."""
        _, *own = inspect.signature(cls.__init__).parameters.values()
        takes_any = own[-1].kind is inspect.Parameter.VAR_KEYWORD
        names = [parameter.name for parameter in own]
        unknown = unknown_name(kwargs, names)
        if unknown and not takes_any:
            others = [name for name in kwargs if name not in names][1:]
            if others:
                unknown += (
                    f' Nor has it {", ".join(others)}: _delete_=True in the same dict drops what a '
                    'config inherits.'
                )
            raise TypeError(f'{cls.__name__} has no argument {unknown}')
        return super().__new__(cls)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Draw what ``to_empty`` leaves undrawn; nothing about its tensors would tell later."""
        super()._apply(fn, recurse)
        modules = reversed([*self.modules()])  # children before those that have them
        undrawn = set()
        for module in modules if recurse and 'to_empty' in getattr(fn, '__qualname__', '') else ():
            sharded = any(hasattr(param, '__tensor_flatten__') for param in module.parameters())
            if hasattr(module, 'reset_parameters') and not sharded:
                module.reset_parameters()
            elif module._parameters or module._buffers:
                undrawn.add(type(module).__name__)
        if undrawn:
            print_log(
                f'{", ".join(sorted(undrawn))}: without reset_parameters(), or sharded; after '
                'to_empty the weights must be loaded.',
                level=logging.WARNING,
            )
        return self


def check_whole(module: nn.Module) -> None:
    """Refuse to draw a module whose children are not there yet: they would be drawn otherwise.

    Raises:
        RuntimeError: If some of its parameters are on the meta device and some are not.
    """
    if len({param.is_meta for param in module.parameters()}) > 1:
        raise RuntimeError(
            f'a part of {type(module).__name__} is on the meta device: call to_empty(device=…) of '
            'the whole model, rather than of one module after the other.'
        )
