"""Metrics, scores by cell, and the holdout: its loss, calibration and scores."""
