"""Further columns of videos.parquet: reading them as attributes, and choosing which of them a model reads."""
