"""Forecasts that are sent to subscribers as they change."""
