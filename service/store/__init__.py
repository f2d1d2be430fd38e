"""The event store: its semantics in Redis (``store.lua``), writing rows, and reading videos."""
