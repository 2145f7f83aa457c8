"""Parts of a run: hooks, the optimiser's construction, resuming."""

from mmvim.engine.hooks import NonFiniteLossHook, StrictCheckpointHook
from mmvim.engine.layer_decay import LayerDecayOptimWrapperConstructor
from mmvim.engine.resume import (
    AtomicCheckpointHook,
    DataPositionHook,
    RandomStateHook,
    SaveOnSignalHook,
    SeededDataLoader,
    leave,
    make_resumable,
    resume_with_seed,
    use_atomic_checkpoints,
)

__all__ = [
    'AtomicCheckpointHook',
    'DataPositionHook',
    'LayerDecayOptimWrapperConstructor',
    'NonFiniteLossHook',
    'RandomStateHook',
    'SaveOnSignalHook',
    'SeededDataLoader',
    'StrictCheckpointHook',
    'leave',
    'make_resumable',
    'resume_with_seed',
    'use_atomic_checkpoints',
]
