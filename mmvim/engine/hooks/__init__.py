"""Hooks that stop a run which would go wrong silently, and those that let it survive."""

from mmvim.engine.hooks.nan_loss import NonFiniteLossHook
from mmvim.engine.hooks.strict_checkpoint import StrictCheckpointHook
from mmvim.engine.resume.atomic_checkpoint import AtomicCheckpointHook
from mmvim.engine.resume.data_position import DataPositionHook
from mmvim.engine.resume.random_state_hook import RandomStateHook
from mmvim.engine.resume.save_on_signal import SaveOnSignalHook

__all__ = [
    'AtomicCheckpointHook',
    'DataPositionHook',
    'NonFiniteLossHook',
    'RandomStateHook',
    'SaveOnSignalHook',
    'StrictCheckpointHook',
]
