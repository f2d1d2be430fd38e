"""Parses and stores batches of rows from HTTP, WebSockets or the Redis stream, and reports their outcomes.

A long batch is handled in slices. Before each slice, the batch waits for its client's turn. In a turn, the client may use the event
loop for a short time (see ``service.fair_turns``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import msgspec

from model.engagement.history import Mode
from service.fair_turns import Turns
from service.ingest.batch_decoder import BatchDecoder
from service.ingest.group_commit import GroupCommitQueue
from service.ingest.json_slices import is_cut, row_end, row_too_long, rows_within
from service.ingest.packed_rows import parse_packed, unpack
from service.ingest.row_parser import Parsed, RowParser
from service.metrics import Metrics
from service.problems import Invalid, Malformed, Unavailable
from service.settings import IngestSettings
from service.store.rows.outcome import Outcome, Rejection
from service.store.rows.row_batch import RowBatch
from service.strict_json import parse_line, parse_rows

SLICE_ROWS: Final = 512
"""Number of rows that are decoded in one turn. Decoding takes about 0.3 ms if the rows are valid."""
CAREFUL_ROWS: Final = 16
"""Number of rows that ``RowParser`` checks in one turn. Each row takes about 10 us, or more if the row is long."""
SLICE_BYTES: Final = 64 * 1024
"""Approximate number of bytes of a JSON body that are decoded in one turn."""
_CUT_TRIES: Final = 8
"""Number of possible ends of a row that are tried one after the other. After these, most possible ends are skipped."""
_SMALL_BYTES: Final = 4096
"""Maximum size in bytes of a body that is decoded without waiting for a turn."""


class Take(Protocol):
    """A function that stores a batch of parsed rows, such as ``IngestHandler.take``."""

    async def __call__(self, kind: Mode, items: list[Any]) -> Outcome:
        """Store rows. Return their outcome."""


class IngestHandler:
    """Parses and stores batches of events or counters. In each turn of a client, one slice of a batch is handled."""

    def __init__(
        self,
        parser: RowParser,
        decoder: BatchDecoder,
        queue: GroupCommitQueue,
        metrics: Metrics,
        turns: Turns,
        settings: IngestSettings,
    ) -> None:
        self._parser, self._decoder = parser, decoder
        self._queue = queue
        self._metrics = metrics
        self._turns = turns
        self._max_row_bytes = settings.max_line_bytes
        self.max_rows = settings.max_batch_rows
        """Maximum number of rows in one batch."""

    async def take(self, kind: Mode, items: Sequence[Any], client: bytes = b"") -> Outcome:
        """Store the valid rows of a batch. Return the outcome, which lists the invalid rows.

        If the batch is too long, nothing is stored. ``client``: the client who sent the rows. Parked rows use this client's share.
        """
        return await self._take(_Batch(kind, client), items, self._decoder.items)

    async def take_json(self, kind: Mode, body: bytes, client: bytes = b"", request: str | None = None) -> Outcome:
        """Store the rows of a JSON body, as ``take`` does.

        ``request``: the request's idempotency key, if it has one. Each event without an id gets an id made of this key.
        """
        batch = _Batch(kind, client, request)
        if len(body) > 2 * SLICE_BYTES:
            await self._take_slices(batch, body)
            return await self._store(batch)
        if len(body) > _SMALL_BYTES:
            await self._turns.take(client)
        rows = self._decoder.json(kind, body)
        if rows is not None:
            self._check_length(len(rows))
            batch.add(rows)
        else:
            await self._parse_into(batch, parse_rows(body))
        return await self._store(batch)

    async def take_packed(self, kind: Mode, rows: msgspec.Raw, client: bytes = b"") -> Outcome:
        """Store the rows of a MessagePack list, as ``take`` does. Raise Invalid if ``rows`` is not such a list."""
        return await self._take(_Batch(kind, client), parse_packed(rows, self.max_rows), self._decoder.packed, unpack)

    async def take_lines(
        self,
        kind: Mode,
        lines: Sequence[bytes],
        client: bytes = b"",
        request: str | None = None,
        first: int = 0,
        list_rejections: bool = True,
    ) -> Outcome:
        """Store the rows of NDJSON lines, as ``take`` does.

        Args:
            kind: whether the rows are events or counters.
            lines: the lines. None of them is blank.
            client: the client who sent the rows. Parked rows use this client's share.
            request: the request's idempotency key (see ``take_json``).
            first: the position of the first line in the request.
            list_rejections: if False, refused rows are only counted.
        """
        batch = _Batch(kind, client, request, first, list_rejections)
        return await self._take(batch, lines, self._decoder.lines, parse_line)

    async def _take(
        self,
        batch: _Batch,
        items: Sequence[Any],
        decode: Callable[[Mode, Sequence[Any]], RowBatch | None],
        read: Callable[[Any], Any] | None = None,
    ) -> Outcome:
        self._check_length(len(items))
        for start in range(0, len(items), SLICE_ROWS):
            await self._turns.take(batch.client)
            part = items[start : start + SLICE_ROWS]
            rows = decode(batch.kind, part)
            if rows is not None:
                batch.add(rows)
            else:
                await self._parse_into(batch, part, read)
        return await self._store(batch)

    async def _take_slices(self, batch: _Batch, body: bytes) -> None:
        """Decode a long JSON body slice by slice.

        If one slice is not valid JSON, the whole body is refused, because earlier slices may then have ended at a wrong place.
        """
        start, end = rows_within(body)
        while start < end:
            stop, following = row_end(body, start, min(start + SLICE_BYTES, end), end)
            tries = 0
            while not await self._take_slice(batch, b"[" + body[start:stop] + b"]", last=stop == end):
                # The slice ended inside a row. Try the next possible end of a row.
                tries += 1
                if stop - start > SLICE_BYTES + self._max_row_bytes:
                    raise row_too_long(self._max_row_bytes)
                step = 1 if tries <= _CUT_TRIES else SLICE_BYTES // 4
                stop, following = row_end(body, start, min(stop + step, end), end)
            start = following
            if batch.items > self.max_rows:
                raise self._too_many(f"more than {self.max_rows}")

    async def _take_slice(self, batch: _Batch, text: bytes, *, last: bool) -> bool:
        """Decode a list of rows. Return False if the text ends inside a row, unless it is the ``last`` slice.

        Raise Malformed for any other text that is not a JSON list.
        """
        if len(text) > 2 * SLICE_BYTES + self._max_row_bytes:
            raise row_too_long(self._max_row_bytes)
        await self._turns.take(batch.client)
        rows = self._decoder.json(batch.kind, text)
        if rows is not None:
            batch.add(rows)
            return True
        try:
            items = parse_rows(text)
        except Malformed:
            if last or not is_cut(text):
                raise
            return False
        await self._parse_into(batch, items)
        return True

    async def _parse_into(self, batch: _Batch, items: Sequence[Any], read: Callable[[Any], Any] | None = None) -> None:
        first = batch.first + batch.items
        parsed = await self.parse(
            batch.kind, items, read=read, client=batch.client, first=first, list_rejections=batch.list_rejections
        )
        batch.add_parsed(parsed, len(items))

    async def _store(self, batch: _Batch) -> Outcome:
        rows = batch.rows()
        if batch.request is not None and batch.kind == "events" and len(rows):
            rows.identify(batch.request)
        try:
            outcome = await self._queue.write(rows, batch.client) if len(rows) else Outcome()
        except Unavailable as problem:
            raise problem.copy(unknown=problem.extra.get("unknown", len(rows))) from None
        outcome.rejections += batch.refused
        outcome.unlisted += batch.unlisted
        outcome.ignore(batch.ignored)
        outcome.rejections.sort(key=lambda rejection: rejection.index)
        self.count(batch.kind, outcome)
        return outcome

    async def parse(
        self,
        kind: Mode,
        items: Sequence[Any],
        video_id: str | None = None,
        read: Callable[[Any], Any] | None = None,
        client: bytes = b"",
        first: int = 0,
        list_rejections: bool = True,
    ) -> Parsed:
        """Validate rows one by one, as ``RowParser.parse`` does. ``CAREFUL_ROWS`` rows are checked in each turn.

        ``read``: a function that parses an item. None if the items are parsed JSON already.
        """
        self._check_length(len(items))
        parsed = Parsed()
        for start in range(0, len(items), CAREFUL_ROWS):
            await self._turns.take(client)
            part = items[start : start + CAREFUL_ROWS]
            if read is not None:
                part = list(map(read, part))
            self._parser.parse(kind, part, video_id, first=first + start, into=parsed, list_rejections=list_rejections)
        return parsed

    def _check_length(self, rows: int) -> None:
        if rows > self.max_rows:
            raise self._too_many(rows)

    def _too_many(self, rows: int | str) -> Invalid:
        return Invalid("rows", f"{rows} rows", f"at most {self.max_rows} rows in one request")

    def count(self, kind: str, outcome: Outcome) -> None:
        """Add the outcome of a batch to the metrics. ``kind`` is the metrics' label for the rows."""
        for name, n in (
            ("accepted", outcome.accepted),
            ("duplicate", outcome.duplicate),
            ("parked", outcome.parked),
            ("rejected", outcome.rejected),
        ):
            if n:
                self._metrics.rows.labels(kind, name).inc(n)
        if outcome.corrected:
            self._metrics.corrections.inc(outcome.corrected)
        if outcome.ignored:
            self._metrics.ignored.inc(sum(outcome.ignored.values()))


class _Batch:
    """The rows of a request, which are collected slice by slice. ``IngestHandler.take_lines`` explains the arguments."""

    def __init__(
        self, kind: Mode, client: bytes, request: str | None = None, first: int = 0, list_rejections: bool = True
    ) -> None:
        self.kind, self.client, self.request = kind, client, request
        self.first, self.list_rejections = first, list_rejections
        self.items = 0
        """Number of rows so far, including refused rows."""
        self.refused: list[Rejection] = []
        self.unlisted = 0
        self.ignored: Counter[str] = Counter()
        self._parts: list[RowBatch] = []

    def add(self, rows: RowBatch) -> None:
        """Add decoded rows."""
        first = self.first + self.items
        self.items += len(rows)
        rows.indices = range(first, first + len(rows))
        self._parts.append(rows)

    def add_parsed(self, parsed: Parsed, items: int) -> None:
        """Add the result of parsing rows one by one. ``items`` is the number of these rows."""
        self.items += items
        self.refused += parsed.refused
        self.unlisted += parsed.unlisted
        self.ignored.update(parsed.ignored)
        if parsed.rows:
            self._parts.append(RowBatch.of(parsed.rows))

    def rows(self) -> RowBatch:
        """Return all valid rows as one batch."""
        rows = RowBatch.joined(self._parts) if self._parts else RowBatch.of(())
        rows.list_rejections = self.list_rejections
        return rows
