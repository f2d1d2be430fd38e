"""Backends that compute the Mamba-Hawkes state in serving: one for the CPU and one for CUDA, with the same interface."""
