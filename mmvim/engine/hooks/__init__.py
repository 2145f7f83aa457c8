"""Hooks that stop a run which would otherwise go wrong silently."""
