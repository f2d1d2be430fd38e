"""Batches of rows: parsed, stored, and told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from model.history import Mode
from service.http.bodies import parse_line, parse_rows
from service.ingest.fastrows import FastRows
from service.ingest.rowparser import RowParser
from service.ingest.writer import Writer
from service.metrics import Metrics
from service.problems import Invalid
from service.store.columns import Columns
from service.store.row import Outcome, Rejection, Row


class Ingest:
    """Takes batches of events or counters."""

    def __init__(self, parser: RowParser, fast: FastRows, writer: Writer, metrics: Metrics, max_rows: int) -> None:
        self._parser, self._fast = parser, fast
        self._writer = writer
        self._metrics = metrics
        self.max_rows = max_rows
        """Rows in one batch, at most."""

    async def take(self, kind: Mode, items: Sequence[Any]) -> Outcome:
        """Store the good rows of a batch and tell the bad ones; a batch too long stores nothing."""
        columns = self._fast.items(kind, items)
        return await (self._store(kind, columns) if columns is not None else self._take(kind, items))

    async def take_json(self, kind: Mode, body: bytes) -> Outcome:
        """``take`` of a JSON body."""
        columns = self._fast.json(kind, body)
        return await (self._store(kind, columns) if columns is not None else self._take(kind, parse_rows(body)))

    async def take_lines(self, kind: Mode, lines: Sequence[bytes]) -> Outcome:
        """``take`` of lines of NDJSON, none of them blank."""
        columns = self._fast.lines(kind, lines)
        if columns is not None:
            return await self._store(kind, columns)
        return await self._take(kind, [parse_line(line) for line in lines])

    async def _take(self, kind: Mode, items: Sequence[Any]) -> Outcome:
        rows, refused = self.parse(kind, items)
        return await self._store(kind, Columns.of(rows), refused)

    async def _store(self, kind: Mode, rows: Columns, refused: Sequence[Rejection] = ()) -> Outcome:
        self._check(len(rows))
        outcome = await self._writer.write(rows) if len(rows) else Outcome()
        outcome.rejections += refused
        outcome.rejections.sort(key=lambda rejection: rejection.index)
        self.count(kind, outcome)
        return outcome

    def parse(self, kind: Mode, items: Sequence[Any], video_id: str | None = None) -> tuple[list[Row], list[Rejection]]:
        """Validate a batch."""
        self._check(len(items))
        return (self._parser.events if kind == "events" else self._parser.counters)(items, video_id)

    def _check(self, rows: int) -> None:
        if rows > self.max_rows:
            raise Invalid("rows", f"{rows} rows", f"at most {self.max_rows} rows in one request")

    def count(self, kind: str, outcome: Outcome) -> None:
        """Add a batch to the metrics; ``kind`` is the call that brought it."""
        for name, n in (
            ("accepted", outcome.accepted),
            ("duplicate", outcome.duplicate),
            ("parked", outcome.parked),
            ("rejected", len(outcome.rejections)),
        ):
            if n:
                self._metrics.rows.labels(kind, name).inc(n)
        if outcome.corrected:
            self._metrics.corrections.inc(outcome.corrected)
