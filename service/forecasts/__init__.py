"""Forecasts stored videos: the engine, its batches and its cache."""
