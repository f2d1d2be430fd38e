"""Chooses the metrics of a bundle, and trains those after the first."""
