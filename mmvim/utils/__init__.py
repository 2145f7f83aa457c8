"""Pieces the command-line tools share: configs, checks made before a run, errors, pictures."""

from mmvim.utils.errors import UsageError, UserError, run_tool

__all__ = ['UsageError', 'UserError', 'run_tool']
