"""Settings of load: how many requests are handled at once, and how many may wait."""

from __future__ import annotations

from pydantic import Field

from service.settings.group import SettingsGroup


class LoadSettings(SettingsGroup):
    """Concurrency limits for each kind of request. Streams, health probes and metrics are not counted."""

    reads_in_flight: int = Field(24, ge=1, le=100_000)
    """Maximum number of reads, such as forecasts, that are handled at once."""
    reads_waiting: int = Field(16, ge=0, le=100_000)
    """Maximum number of reads that may wait. Further reads are refused with 503."""
    writes_in_flight: int = Field(8, ge=1, le=100_000)
    """Maximum number of small writes that are handled at once. Small writes are registrations, deletions, and batches of rows
    whose body, as sent, has at most 4 KB."""
    writes_waiting: int = Field(16, ge=0, le=100_000)
    """Maximum number of small writes that may wait. Further small writes are refused with 503."""
    bulk_in_flight: int = Field(64, ge=1, le=100_000)
    """Maximum number of larger batches of rows that are handled at once. The limit is high, because batches that arrive together
    are stored in one group commit."""
    bulk_waiting: int = Field(64, ge=0, le=100_000)
    """Maximum number of larger batches that may wait. Further batches are refused with 503."""
    wait_ms: int = Field(500, ge=1, le=60_000)
    """Maximum time in milliseconds that a request waits. After that time, the request is refused with 503."""
    client_share: float = Field(1.0, gt=0, le=1)
    """Fraction of the limits above that one client may use. Requests beyond this fraction are refused with 429. A client is an API key,
    or an address if the request has no key."""
