"""Quantiles of a forecast: the head that computes them, their calibration, and the limits set by the training data."""
