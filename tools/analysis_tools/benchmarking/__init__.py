"""Shared parts of the benchmark scripts; torch and mmvim_ops do for all but `backbones`."""
