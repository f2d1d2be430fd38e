"""Loads, warms up, activates and shadows model versions."""
