"""Hooks that stop a run which would otherwise go wrong silently."""

from mmvim.engine.hooks.nan_loss import NonFiniteLossHook
from mmvim.engine.hooks.strict_checkpoint import StrictCheckpointHook

__all__ = ['NonFiniteLossHook', 'StrictCheckpointHook']
