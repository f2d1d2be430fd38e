"""HTTP without routes: connections, bodies, responses, API keys, limits and metrics. It knows nothing about rows and forecasts."""
