"""Settings of ingest: limits on rows, group commits and the Redis stream."""

from __future__ import annotations

from pydantic import Field

from service.settings.group import SettingsGroup


class IngestSettings(SettingsGroup):
    """Which rows are accepted, and how they reach the event store.

    A group commit stores the rows of several requests together.
    """

    future_skew_s: float = Field(60, ge=0, le=3600)
    """Maximum number of seconds that a row's time may be ahead of this machine's clock."""
    max_id_length: int = Field(256, ge=1, le=1024)
    """Maximum length of a video id or an event id in characters."""
    max_line_bytes: int = Field(64 * 1024, ge=1024, le=2**24)
    """Maximum length of one NDJSON line in bytes."""
    max_batch_rows: int = Field(10_000, ge=1, le=1_000_000)
    """Maximum number of rows in one request. An NDJSON request may have more rows, which are stored in batches of up to this
    size."""
    ingest_round_rows: int = Field(16_384, ge=1, le=1_000_000)
    """Approximate maximum number of rows in one group commit."""
    ingest_queue_rows: int = Field(200_000, ge=1, le=10_000_000)
    """Maximum number of rows that may wait for the event store. Further rows are refused with 503."""
    ingest_stream: bool = True
    """Whether rows are read from the Redis stream ``m3tr:ingest``."""
    ingest_claim_s: float = Field(30, ge=0.05, le=86_400)
    """Time in seconds after which this replica takes over a stream entry that another replica started but did not finish."""
