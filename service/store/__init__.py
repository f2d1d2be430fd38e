"""The event store: Redis functions (``lua/``), writing rows, and reading videos."""
