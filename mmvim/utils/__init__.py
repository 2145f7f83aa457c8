"""Pieces the command-line tools share: configs, checks made before a run, errors, pictures."""
