"""Heads of the paper's ablations that the libraries lack."""
