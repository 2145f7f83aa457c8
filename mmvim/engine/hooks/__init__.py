"""Hooks that stop a run which would go wrong silently, and those that let it survive."""

from mmvim.engine.hooks.atomic_checkpoint import AtomicCheckpointHook
from mmvim.engine.hooks.data_position import DataPositionHook
from mmvim.engine.hooks.nan_loss import NonFiniteLossHook
from mmvim.engine.hooks.random_state import RandomStateHook
from mmvim.engine.hooks.save_on_signal import SaveOnSignalHook
from mmvim.engine.hooks.strict_checkpoint import StrictCheckpointHook

__all__ = [
    'AtomicCheckpointHook',
    'DataPositionHook',
    'NonFiniteLossHook',
    'RandomStateHook',
    'SaveOnSignalHook',
    'StrictCheckpointHook',
]
