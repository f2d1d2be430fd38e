"""HTTP without routes: connections, bodies, responses, API keys, limits, metrics. Knows nothing of rows and forecasts."""
