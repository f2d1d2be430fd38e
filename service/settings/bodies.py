"""Settings of request bodies: limits on size, memory and time."""

from __future__ import annotations

from pydantic import Field

from service.settings.group import SettingsGroup


class BodySettings(SettingsGroup):
    """Limits of request bodies."""

    max_body_bytes: int = Field(8 * 2**20, ge=1024, le=2**30)
    """Maximum size of a request body in bytes. The limit applies to the body as sent and to the decompressed body. NDJSON
    bodies may be longer."""
    max_body_values: int = Field(250_000, ge=1000, le=100_000_000)
    """Maximum number of values in one JSON body. Commas and opening brackets are counted instead of the values themselves.
    Parsing a million values takes about 0.1 s, and no other request is answered during that time."""
    body_memory_bytes: int = Field(256 * 2**20, ge=2**20, le=2**40)
    """Maximum memory in bytes for the bodies of all requests together. Beyond this limit, requests are refused with 503. One
    client may use half of this memory. Beyond that half, the client's requests are refused with 429."""
    body_deadline_ms: int = Field(30_000, ge=10, le=600_000)
    """Time limit in milliseconds for receiving a request body. For NDJSON, this is the time limit for receiving the next bytes."""
