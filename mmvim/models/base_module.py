"""The base class of our backbones, necks and heads."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from mmengine.model import BaseModule

from mmvim.models.arguments import unknown_name

if TYPE_CHECKING:
    from typing_extensions import Self


class CheckedModule(BaseModule):
    """A module that answers a misspelt argument with the nearest valid one."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Check the keywords."""
        _, *own = inspect.signature(cls.__init__).parameters.values()
        takes_any = own[-1].kind is inspect.Parameter.VAR_KEYWORD
        unknown = unknown_name(kwargs, [parameter.name for parameter in own])
        if unknown and not takes_any:
            raise TypeError(f'{cls.__name__} has no argument {unknown}')
        return super().__new__(cls)
