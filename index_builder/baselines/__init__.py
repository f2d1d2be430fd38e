"""Simple forecasts that the model is compared with."""
