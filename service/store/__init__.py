"""The event store: its semantics in Redis, and what was read from it."""
