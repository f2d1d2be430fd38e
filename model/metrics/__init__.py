"""Forecasts each metric of a bundle from what is known about a batch of videos."""
