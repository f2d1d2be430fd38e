"""The event store: Redis functions (``store.lua``), writing rows, and reading videos."""
