"""Further columns of counters.parquet: reading them as signals, and choosing which of them a model reads."""
