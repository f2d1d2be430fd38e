"""Batches of rows: parsed, stored, and told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from model.engagement.history import Mode
from service.http.bodies import parse_line, parse_packed, parse_rows, unpack
from service.ingest.batch_decoder import FastRows
from service.ingest.group_commit import Writer
from service.ingest.row_parser import Parsed, RowParser
from service.metrics import Metrics
from service.problems import Invalid, Unavailable
from service.store.row import Outcome
from service.store.row_batch import Columns

SLICE_ROWS: Final = 500
"""Rows that are looked at with care in one turn of the loop: about 5 ms."""
SLICE_BYTES: Final = 128 * 1024
"""Bytes of rows that are unpacked in one turn of the loop, about."""


class Ingest:
    """Takes batches of events or counters."""

    def __init__(self, parser: RowParser, fast: FastRows, writer: Writer, metrics: Metrics, max_rows: int) -> None:
        self._parser, self._fast = parser, fast
        self._writer = writer
        self._metrics = metrics
        self.max_rows = max_rows
        """Rows in one batch, at most."""

    async def take(self, kind: Mode, items: Sequence[Any], client: bytes = b"") -> Outcome:
        """Store the good rows of a batch and tell the bad ones; a batch too long stores nothing.

        ``client``: whose share of the parked rows they count for.
        """
        columns = self._fast.items(kind, items)
        return await (self._store(kind, columns, client) if columns is not None else self._take(kind, items, client))

    async def take_json(self, kind: Mode, body: bytes, client: bytes = b"", request: str | None = None) -> Outcome:
        """``take`` of a JSON body; events without an id get one made of the ``request``'s key, where it has one."""
        columns = self._fast.json(kind, body)
        if columns is not None:
            return await self._store(kind, columns, client, request=request)
        await asyncio.sleep(0)
        return await self._take(kind, parse_rows(body), client, request=request)

    async def take_packed(self, kind: Mode, rows: msgspec.Raw, client: bytes = b"") -> Outcome:
        """``take`` of a list in MessagePack; raises Malformed or Invalid where it is none."""
        items = parse_packed(rows, self.max_rows)
        columns = self._fast.packed(kind, rows)
        return await (
            self._store(kind, columns, client) if columns is not None else self._take(kind, items, client, unpack)
        )

    async def take_lines(
        self, kind: Mode, lines: Sequence[bytes], client: bytes = b"", request: str | None = None, first: int = 0
    ) -> Outcome:
        """``take`` of lines of NDJSON, none of them blank; ``first`` is the place of the first one in the ``request``."""
        columns = self._fast.lines(kind, lines)
        if columns is not None:
            return await self._store(kind, columns, client, request=request, first=first)
        return await self._take(kind, lines, client, parse_line, request, first)

    async def _take(
        self,
        kind: Mode,
        items: Sequence[Any],
        client: bytes,
        read: Callable[[Any], Any] | None = None,
        request: str | None = None,
        first: int = 0,
    ) -> Outcome:
        parsed = await self.parse(kind, items, read=read)
        return await self._store(kind, Columns.of(parsed.rows), client, parsed, request, first)

    async def _store(
        self,
        kind: Mode,
        rows: Columns,
        client: bytes,
        parsed: Parsed | None = None,
        request: str | None = None,
        first: int = 0,
    ) -> Outcome:
        self._check(len(rows))
        if request is not None and kind == "events" and len(rows):
            rows.identify(request, first)
        try:
            outcome = await self._writer.write(rows, client) if len(rows) else Outcome()
        except Unavailable as problem:
            raise problem.copy(unknown=problem.extra.get("unknown", len(rows))) from None
        if parsed is not None:
            outcome.rejections += parsed.refused
            outcome.ignore(parsed.ignored)
        outcome.rejections.sort(key=lambda rejection: rejection.index)
        self.count(kind, outcome)
        return outcome

    async def parse(
        self,
        kind: Mode,
        items: Sequence[Any],
        video_id: str | None = None,
        read: Callable[[Any], Any] | None = None,
    ) -> Parsed:
        """Validate a batch, a slice at a time, so that others have their turn in between; ``read`` makes an item's value."""
        self._check(len(items))
        parsed = Parsed()
        first = 0
        while first < len(items):
            if first:
                await asyncio.sleep(0)
            part = items[first : first + SLICE_ROWS]
            if read is not None:
                size, most = 0, 0
                while most < len(part) and size < SLICE_BYTES:
                    size += len(memoryview(part[most]))
                    most += 1
                part = list(map(read, part[:most]))
            self._parser.parse(kind, part, video_id, first=first, into=parsed)
            first += len(part)
        return parsed

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
        if outcome.ignored:
            self._metrics.ignored.inc(sum(outcome.ignored.values()))
