"""Scores of a bundle on a data set, beside baselines."""
