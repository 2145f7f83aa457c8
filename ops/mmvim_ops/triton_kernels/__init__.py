"""Kernels in Triton for GPUs of any make; importing a module of this package needs triton."""
