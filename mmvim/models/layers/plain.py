"""Whether an op may read a layer's parameters instead of calling it.

Hooks, adapters, quantisers, pruning and parametrisations hang on a layer or take its place; they
act when it is called, and an op that reads ``layer.weight`` would pass them by in silence.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils.module_tracker import ModuleTracker

_FORWARDS: dict[type[nn.Module], Any] = {
    kind: kind.forward for kind in (nn.Linear, nn.Conv1d, nn.RMSNorm)
}
_HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')


def is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer is its weight and bias and nothing else.

    Args:
        layer (nn.Module): The layer.
        kind (type[nn.Module]): The class that it must be of, subclasses excluded.
    """
    return (
        is_as_built(layer, kind, _FORWARDS[kind])
        and not layer._modules
        and not layer._buffers
        and layer._parameters.keys() <= {'weight', 'bias'}
        and layer._parameters.get('weight') is not None
        # Quantised and distributed weights are tensors with a matrix product of their own.
        and not any(hasattr(param, '__tensor_flatten__') for param in layer._parameters.values())
    )


def is_as_built(module: nn.Module, kind: type[nn.Module], forward: Any) -> bool:
    """Whether nothing hangs on a module of ours itself: no hooks, and its own forward.

    Args:
        module (nn.Module): The module; its children may be of any kind.
        kind (type[nn.Module]): The class that it must be of, subclasses excluded.
        forward (Any): The forward of that class as it is written.
    """
    return (
        type(module) is kind
        and kind.forward is forward
        and 'forward' not in module.__dict__
        and not any(getattr(module, hooks) for hooks in _HOOKS)
        and not _global_hooks()
    )


def _global_hooks() -> bool:
    """Whether hooks of all modules are set that may change something."""
    return any(
        # The one of torch's FlopCounterMode notes names.
        not isinstance(getattr(hook, '__self__', None), ModuleTracker)
        for hooks in _HOOKS
        for hook in getattr(torch_module, f'_global{hooks}').values()
    )
