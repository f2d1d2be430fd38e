"""Metrics, and the held-back videos they are computed on."""
