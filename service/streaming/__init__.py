"""Sends forecasts to subscribers whenever they change."""
