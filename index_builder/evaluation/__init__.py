"""Scores a bundle on a data set and compares it with baselines."""
