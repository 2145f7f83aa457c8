"""Parts of a run: hooks, the optimiser's construction, resuming."""

from mmvim.engine.hooks.nan_loss import NonFiniteLossHook
from mmvim.engine.hooks.strict_checkpoint import StrictCheckpointHook
from mmvim.engine.layer_decay import LayerDecayOptimWrapperConstructor
from mmvim.engine.resume.atomic_checkpoint import AtomicCheckpointHook
from mmvim.engine.resume.data_position import DataPositionHook
from mmvim.engine.resume.random_state import RandomStateHook
from mmvim.engine.resume.save_on_signal import SaveOnSignalHook

__all__ = [
    'AtomicCheckpointHook',
    'DataPositionHook',
    'LayerDecayOptimWrapperConstructor',
    'NonFiniteLossHook',
    'RandomStateHook',
    'SaveOnSignalHook',
    'StrictCheckpointHook',
]
