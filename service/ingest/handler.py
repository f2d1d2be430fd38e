"""Batches of rows: parsed, stored, and told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from model.engagement.history import Mode
from service.ingest.batch_decoder import BatchDecoder
from service.ingest.group_commit import GroupCommitQueue
from service.ingest.json_slices import is_cut, row_end, row_too_long, rows_within
from service.ingest.packed_rows import parse_packed, unpack
from service.ingest.row_parser import Parsed, RowParser
from service.metrics import Metrics
from service.problems import Invalid, Malformed, Unavailable
from service.settings import IngestSettings
from service.store.row import Outcome, Rejection
from service.store.row_batch import RowBatch
from service.strict_json import parse_line, parse_rows
from service.turns import Turns

SLICE_ROWS: Final = 512
"""Good rows that are decoded at once: about 0.3 ms."""
CAREFUL_ROWS: Final = 16
"""Rows that are looked at with care between two looks at the clock: some 10 us each, and more where they are long."""
SLICE_BYTES: Final = 64 * 1024
"""Bytes of a JSON body that are decoded at once, about."""
_TRIES: Final = 8
"""Ends of rows, one after the other, that are tried before many are left out."""
_SMALL: Final = 4096
"""Bytes of a body that is not worth waiting for a turn."""


class IngestHandler:
    """Takes batches of events or counters, a slice in each of their client's turns."""

    def __init__(
        self,
        parser: RowParser,
        fast: BatchDecoder,
        writer: GroupCommitQueue,
        metrics: Metrics,
        turns: Turns,
        settings: IngestSettings,
    ) -> None:
        self._parser, self._fast = parser, fast
        self._writer = writer
        self._metrics = metrics
        self._turns = turns
        self._row_bytes = settings.max_line_bytes
        self.max_rows = settings.max_batch_rows
        """Rows in one batch, at most."""

    async def take(self, kind: Mode, items: Sequence[Any], client: bytes = b"") -> Outcome:
        """Store the good rows of a batch and tell the bad ones; a batch too long stores nothing.

        ``client``: whose share of the parked rows they count for.
        """
        return await self._take(_Batch(kind, client), items, self._fast.items)

    async def take_json(self, kind: Mode, body: bytes, client: bytes = b"", request: str | None = None) -> Outcome:
        """``take`` of a JSON body; events without an id get one made of the ``request``'s key, where it has one."""
        batch = _Batch(kind, client, request)
        if len(body) > 2 * SLICE_BYTES:
            await self._take_pieces(batch, body)
            return await self._store(batch)
        if len(body) > _SMALL:
            await self._turns.take(client)
        columns = self._fast.json(kind, body)
        if columns is not None:
            self._check(len(columns))
            batch.add(columns)
        else:
            await self._look(batch, parse_rows(body))
        return await self._store(batch)

    async def take_packed(self, kind: Mode, rows: msgspec.Raw, client: bytes = b"") -> Outcome:
        """``take`` of a list in MessagePack; raises Malformed or Invalid where it is none."""
        return await self._take(_Batch(kind, client), parse_packed(rows, self.max_rows), self._fast.packed, unpack)

    async def take_lines(
        self,
        kind: Mode,
        lines: Sequence[bytes],
        client: bytes = b"",
        request: str | None = None,
        first: int = 0,
        listed: bool = True,
    ) -> Outcome:
        """``take`` of lines of NDJSON, none of them blank; ``first`` is the place of the first one in the ``request``.

        ``listed``: whether refused rows are told one by one, or counted only.
        """
        return await self._take(_Batch(kind, client, request, first, listed), lines, self._fast.lines, parse_line)

    async def _take(
        self,
        batch: _Batch,
        items: Sequence[Any],
        fast: Callable[[Mode, Sequence[Any]], RowBatch | None],
        read: Callable[[Any], Any] | None = None,
    ) -> Outcome:
        self._check(len(items))
        for start in range(0, len(items), SLICE_ROWS):
            await self._turns.take(batch.client)
            part = items[start : start + SLICE_ROWS]
            columns = fast(batch.kind, part)
            if columns is not None:
                batch.add(columns)
            else:
                await self._look(batch, part, read)
        return await self._store(batch)

    async def _take_pieces(self, batch: _Batch, body: bytes) -> None:
        """The rows of a long JSON body. What comes out is right only where all pieces are valid; otherwise it is refused whole."""
        start, end = rows_within(body)
        while start < end:
            stop, following = row_end(body, start, min(start + SLICE_BYTES, end), end)
            tries = 0
            while not await self._take_piece(batch, b"[" + body[start:stop] + b"]", last=stop == end):
                # A row goes on there: what looked like its end was a part of it.
                tries += 1
                if stop - start > SLICE_BYTES + self._row_bytes:
                    raise row_too_long(self._row_bytes)
                further = 1 if tries <= _TRIES else SLICE_BYTES // 4
                stop, following = row_end(body, start, min(stop + further, end), end)
            start = following
            if batch.items > self.max_rows:
                raise self._too_many(f"more than {self.max_rows}")

    async def _take_piece(self, batch: _Batch, piece: bytes, *, last: bool) -> bool:
        """A list of rows; False where it is cut within a row. Raises Malformed where it is no JSON."""
        if len(piece) > 2 * SLICE_BYTES + self._row_bytes:
            raise row_too_long(self._row_bytes)
        await self._turns.take(batch.client)
        columns = self._fast.json(batch.kind, piece)
        if columns is not None:
            batch.add(columns)
            return True
        try:
            items = parse_rows(piece)
        except Malformed:
            if last or not is_cut(piece):
                raise
            return False
        await self._look(batch, items)
        return True

    async def _look(self, batch: _Batch, items: Sequence[Any], read: Callable[[Any], Any] | None = None) -> None:
        parsed = await self.parse(
            batch.kind, items, read=read, client=batch.client, first=batch.first + batch.items, listed=batch.listed
        )
        batch.add_parsed(parsed, len(items))

    async def _store(self, batch: _Batch) -> Outcome:
        rows = batch.rows()
        if batch.request is not None and batch.kind == "events" and len(rows):
            rows.identify(batch.request)
        try:
            outcome = await self._writer.write(rows, batch.client) if len(rows) else Outcome()
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
        listed: bool = True,
    ) -> Parsed:
        """Validate a batch with care, as far as each turn reaches; ``read`` makes an item's value, ``first`` is its place."""
        self._check(len(items))
        parsed = Parsed()
        for start in range(0, len(items), CAREFUL_ROWS):
            await self._turns.take(client)
            part = items[start : start + CAREFUL_ROWS]
            if read is not None:
                part = list(map(read, part))
            self._parser.parse(kind, part, video_id, first=first + start, into=parsed, listed=listed)
        return parsed

    def _check(self, rows: int) -> None:
        if rows > self.max_rows:
            raise self._too_many(rows)

    def _too_many(self, rows: int | str) -> Invalid:
        return Invalid("rows", f"{rows} rows", f"at most {self.max_rows} rows in one request")

    def count(self, kind: str, outcome: Outcome) -> None:
        """Add a batch to the metrics; ``kind`` is the call that brought it."""
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
    """The rows of a request, put together slice by slice; see ``Ingest.take_lines``."""

    def __init__(
        self, kind: Mode, client: bytes, request: str | None = None, first: int = 0, listed: bool = True
    ) -> None:
        self.kind, self.client, self.request, self.first, self.listed = kind, client, request, first, listed
        self.items = 0
        """Rows so far, refused ones as well."""
        self.refused: list[Rejection] = []
        self.unlisted = 0
        self.ignored: Counter[str] = Counter()
        self._parts: list[RowBatch] = []

    def add(self, columns: RowBatch) -> None:
        """Add good rows."""
        place = self.first + self.items
        self.items += len(columns)
        columns.places = range(place, place + len(columns))
        self._parts.append(columns)

    def add_parsed(self, parsed: Parsed, items: int) -> None:
        """Add rows that were looked at one by one."""
        self.items += items
        self.refused += parsed.refused
        self.unlisted += parsed.unlisted
        self.ignored.update(parsed.ignored)
        if parsed.rows:
            self._parts.append(RowBatch.of(parsed.rows))

    def rows(self) -> RowBatch:
        """All good rows."""
        rows = RowBatch.joined(self._parts) if self._parts else RowBatch.of(())
        rows.listed = self.listed
        return rows
