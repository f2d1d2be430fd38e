"""Settings of request bodies: size, memory, time."""

from __future__ import annotations

from pydantic import Field

from service.settings.group import SettingsGroup


class BodySettings(SettingsGroup):
    """Limits of request bodies."""

    max_body_bytes: int = Field(8 * 2**20, ge=1024, le=2**30)
    """Limit of a request body in bytes, as sent and after unpacking. NDJSON may be longer."""
    max_body_values: int = Field(250_000, ge=1000, le=100_000_000)
    """Limit of values in one JSON body, counted by its commas and opening brackets. Parsing a million values takes about 0.1 s, in
    which no other request is answered."""
    body_memory_bytes: int = Field(256 * 2**20, ge=2**20, le=2**40)
    """Limit of request bodies in memory, in bytes over all requests; one client may use half of it. More is refused with 503 or
    429."""
    body_deadline_ms: int = Field(30_000, ge=10, le=600_000)
    """Milliseconds in which a request body must arrive; for NDJSON, in which the next bytes must arrive."""
