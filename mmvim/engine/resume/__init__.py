"""Interrupted trainings go on bit for bit: atomic checkpoints, random state, data position."""

from mmvim.engine.resume.atomic_checkpoint import AtomicCheckpointHook
from mmvim.engine.resume.data_position import DataPositionHook
from mmvim.engine.resume.random_state import RandomStateHook
from mmvim.engine.resume.resumable import (
    leave,
    make_resumable,
    resume_with_seed,
    use_atomic_checkpoints,
)
from mmvim.engine.resume.save_on_signal import SaveOnSignalHook
from mmvim.engine.resume.seeded_loader import SeededDataLoader

__all__ = [
    'AtomicCheckpointHook',
    'DataPositionHook',
    'RandomStateHook',
    'SaveOnSignalHook',
    'SeededDataLoader',
    'leave',
    'make_resumable',
    'resume_with_seed',
    'use_atomic_checkpoints',
]
