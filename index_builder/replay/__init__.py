"""Sends a data set to a running service as a live stream."""
