"""Shared parts of the benchmark scripts: timing, memory, ceilings, the machine, reports.

Needs torch and mmvim_ops alone, but for :mod:`benchmarking.backbones`; matplotlib, rich and the
command-line tools of a GPU are used where they are there.
"""
