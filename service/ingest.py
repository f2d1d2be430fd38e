"""Batches of rows: parsed, stored, and told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from model.history import Mode
from service.metrics import Metrics
from service.problems import Invalid
from service.row import Outcome, Rejection, Row
from service.rowparser import RowParser
from service.store import Store


class Ingest:
    """Takes batches of events or counters."""

    def __init__(self, parser: RowParser, store: Store, metrics: Metrics, max_rows: int) -> None:
        self._parser = parser
        self._store = store
        self._metrics = metrics
        self._max_rows = max_rows

    async def take(self, kind: Mode, items: Sequence[Any]) -> Outcome:
        """Store the good rows of a batch and tell the bad ones; a batch too long stores nothing."""
        rows, refused = self.parse(kind, items)
        by_video: dict[str, list[Row]] = {}
        for row in rows:
            by_video.setdefault(row.video_id, []).append(row)
        outcome = Outcome(rejections=refused)
        if by_video:
            for applied in (await self._store.apply(by_video)).values():
                outcome.add(applied.outcome)
        outcome.rejections.sort(key=lambda rejection: rejection.index)
        self.count(kind, outcome)
        return outcome

    def parse(self, kind: Mode, items: Sequence[Any], video_id: str | None = None) -> tuple[list[Row], list[Rejection]]:
        """Validate a batch."""
        if len(items) > self._max_rows:
            raise Invalid("rows", f"{len(items)} rows", f"at most {self._max_rows} rows in one request")
        return (self._parser.events if kind == "events" else self._parser.counters)(items, video_id)

    def count(self, kind: str, outcome: Outcome) -> None:
        """Add a batch to the metrics; ``kind`` is the call that brought it."""
        for name, n in (
            ("accepted", outcome.accepted),
            ("duplicate", outcome.duplicate),
            ("parked", outcome.parked),
            ("rejected", len(outcome.rejections)),
        ):
            self._metrics.rows.labels(kind, name).inc(n)
        self._metrics.corrections.inc(outcome.corrected)
