"""The online service. It receives rows over HTTP and returns forecasts."""
