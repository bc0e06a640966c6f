"""Triton kernels behind the public ops, one file an op, and the device functions that they share."""
