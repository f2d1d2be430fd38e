"""Scores of a bundle on a data set, compared with baselines."""
