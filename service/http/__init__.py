"""HTTP without routes: connections, bodies, responses, API keys, limits and metrics.

This package knows nothing about rows and forecasts.
"""
