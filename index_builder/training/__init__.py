"""Trains a bundle from a data set: training loops, early stopping, checkpoints and export."""
