"""Boosted trees, the second member of the ensemble."""
