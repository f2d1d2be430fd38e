"""Simple forecasts to compare the model with."""
