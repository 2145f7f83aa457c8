"""Kernels in Triton for GPUs of any make; all modules but tuning need triton to be imported."""
