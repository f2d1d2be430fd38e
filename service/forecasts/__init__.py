"""From a stored video to a forecast: cache, batches, engine."""
