"""Interrupted trainings go on bit for bit: atomic checkpoints, random state, data position."""
