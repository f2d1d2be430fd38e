"""Settings of ingest: limits of rows, group commits, the Redis stream."""

from __future__ import annotations

from pydantic import Field

from service.settings.group import SettingsGroup


class IngestSettings(SettingsGroup):
    """Which rows are accepted, and how they reach the event store."""

    future_skew_s: float = Field(60, ge=0, le=3600)
    """Seconds that a time may lie ahead of this machine's clock."""
    max_id_length: int = Field(256, ge=1, le=1024)
    """Limit of a video id or an event id, in characters."""
    max_line_bytes: int = Field(64 * 1024, ge=1024, le=2**24)
    """Limit of one line of NDJSON, in bytes."""
    max_batch_rows: int = Field(10_000, ge=1, le=1_000_000)
    """Limit of rows in one request. NDJSON may have more, and is stored in batches of this size."""
    ingest_round_rows: int = Field(16_384, ge=1, le=1_000_000)
    """Rows of several requests in one group commit, approximately."""
    ingest_queue_rows: int = Field(200_000, ge=1, le=10_000_000)
    """Limit of rows that wait for the event store; more are refused with 503."""
    ingest_stream: bool = True
    """Whether rows are taken from the Redis stream ``m3tr:ingest``."""
    ingest_claim_s: float = Field(30, ge=0.05, le=86_400)
    """Seconds after which an entry of that stream that another replica took and did not finish is taken over."""
