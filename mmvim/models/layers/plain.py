"""Whether an op may read a layer's parameters instead of calling it.

Hooks, adapters, quantisers, pruning and parametrisations hang on a layer or take its place; they
act when it is called, and an op that reads ``layer.weight`` would pass them by in silence.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils.module_tracker import ModuleTracker

_PARAMETERS = {'weight', 'bias'}
_FORWARDS: dict[type[nn.Module], Any] = {
    kind: kind.forward for kind in (nn.Linear, nn.Conv1d, nn.RMSNorm)
}


def read(layer: nn.Module, kind: type[nn.Module]) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias of a layer that is nothing else.

    Args:
        layer (nn.Module): The layer.
        kind (type[nn.Module]): The class that it must be of, subclasses excluded.

    Returns:
        tuple[Tensor, Tensor | None] | None: None if the layer has to be called.
    """
    if not is_as_built(layer, kind, _FORWARDS[kind]) or layer._modules or layer._buffers:
        return None
    # Not by ``layer.weight``, which takes ten times as long, for every layer at every call.
    parameters = layer._parameters
    weight = parameters.get('weight')
    if weight is None or not parameters.keys() <= _PARAMETERS:
        return None
    if not all(map(_is_read_as_it_is, parameters.values())):
        return None
    return weight, parameters.get('bias')


def is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether :func:`read` returns the parameters of a layer."""
    return read(layer, kind) is not None


def _is_read_as_it_is(param: Any) -> bool:
    """Whether a parameter has no matrix product of its own, as quantised and distributed ones."""
    return type(param) is nn.Parameter or not hasattr(param, '__tensor_flatten__')


def is_as_built(module: nn.Module, kind: type[nn.Module], forward: Any) -> bool:
    """Whether nothing hangs on a module of ours itself: no hooks, and its own forward.

    Args:
        module (nn.Module): The module; its children may be of any kind.
        kind (type[nn.Module]): The class that it must be of, subclasses excluded.
        forward (Any): The forward of that class as it is written.
    """
    # Spelt out: a model asks this of every layer at every call.
    return (
        type(module) is kind
        and kind.forward is forward
        and 'forward' not in module.__dict__
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and not module._backward_hooks
        and not module._backward_pre_hooks
        and not (torch_module._has_any_global_hook() and _global_hooks_act())
    )


def _global_hooks_act() -> bool:
    """Whether one of the hooks of all modules may change something."""
    kinds = ('forward_hooks', 'forward_pre_hooks', 'backward_hooks', 'backward_pre_hooks')
    return any(
        # The one of torch's FlopCounterMode notes names.
        not isinstance(getattr(hook, '__self__', None), ModuleTracker)
        for kind in kinds
        for hook in getattr(torch_module, f'_global_{kind}').values()
    )
