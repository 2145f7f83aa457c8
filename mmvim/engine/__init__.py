"""What takes part in a run: hooks."""

from mmvim.engine.hooks import NonFiniteLossHook, StrictCheckpointHook

__all__ = ['NonFiniteLossHook', 'StrictCheckpointHook']
