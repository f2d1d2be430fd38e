"""Computes metrics, scores by cell, and the loss, calibration and scores of the holdout."""
