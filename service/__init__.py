"""The online service: rows in over HTTP, forecasts out."""
