"""Fits the self-exciting cascade to data."""
