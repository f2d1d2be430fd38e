"""One group commit: the rows of several batches, packed for the store, and what became of each batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from redis.exceptions import ResponseError

from service.store.replies import (
    Applied,
    ApplyReply,
    DamagedReply,
    Failed,
    Lost,
    Parked,
    ParkingFull,
    Refused,
    RefusedRow,
    Stale,
)
from service.store.rows.outcome import Outcome
from service.store.rows.rejections import rejection
from service.store.rows.row_batch import COUNTERS_ROW, RowBatch
from service.store.rows.row_table import RowTable


@dataclass(frozen=True, slots=True)
class CommitChunk:
    """Whole videos of a commit, for one call of the store's function ``apply``: its arguments besides the options."""

    videos: Sequence[str]
    head: dict[str, Any]
    columns: tuple[bytes, ...]
    first: int
    """Position in the commit of the first of ``videos``."""


def empty_chunk(video_id: str) -> CommitChunk:
    """A chunk of one video and no row."""
    return CommitChunk([video_id], {"names": [], "lengths": [0]}, (b"",) * 5, 0)


class GroupCommit:
    """Rows of batches that arrived together; of rows with the same id, the earliest batch's is stored.

    ``published_us``: the known publication times, to merge rows by. The store refuses a video's rows that were merged by another
    time than it has. Those videos are in ``stale``; their rows must be sent again unmerged.
    """

    def __init__(self, batches: Sequence[RowBatch], published_us: Mapping[str, int] | None = None) -> None:
        self.batches = batches
        self.outcomes = [Outcome(accepted=len(batch)) for batch in batches]
        """Starts from all rows accepted; ``record`` corrects that."""
        self.faults: list[Exception | None] = [None] * len(batches)
        self.lost = [0] * len(batches)
        """Rows of each batch whose outcome is not known."""
        self.stale: list[int] = []
        """Positions of videos in ``videos``."""
        self.replies: list[ApplyReply | Lost] = []
        self._table = RowTable(batches)
        self._starts = np.concatenate([[0], np.cumsum([len(batch) for batch in batches])])
        self._merged_by = self._table.merge_known(published_us) if published_us is not None else None
        bounds = np.searchsorted(self._table.video_codes, np.arange(len(self.videos) + 1))
        self._first_rows: list[int] = bounds.tolist()

    @property
    def videos(self) -> Sequence[str]:
        """Every video of the commit, once."""
        return self._table.videos

    def chunks(self, rows: int, videos: int | None = None) -> Iterator[CommitChunk]:
        """The commit in chunks of about ``rows`` rows and up to ``videos`` videos, each of one video or more."""
        table, first_rows = self._table, self._first_rows
        first = 0
        while first < len(self.videos):
            last = first + 1
            limit = len(self.videos) if videos is None else min(len(self.videos), first + videos)
            while last < limit and first_rows[last + 1] - first_rows[first] <= rows:
                last += 1
            part = slice(first_rows[first], first_rows[last])
            type_codes = table.type_codes[part]
            head: dict[str, Any] = {
                "names": table.types,
                "lengths": [first_rows[v + 1] - first_rows[v] for v in range(first, last)],
            }
            if table.cells is not None:
                with_codes = zip(table.cells[part], type_codes.tolist(), strict=True)
                head["cells"] = [[x for cell in cells for x in cell] for cells, c in with_codes if c == COUNTERS_ROW]
            if self._merged_by is not None:
                head["expected"] = self._merged_by[first:last]
            columns = (
                table.times_us[part].astype("<f8").tobytes(),
                b"" if table.ids is None else b"".join(table.ids[part]),
                type_codes.tobytes(),
                b"" if table.counts is None else table.counts[part].astype("<f8").tobytes(),
                b"" if table.reaches is None else table.reaches[part].astype("<f8").tobytes(),
            )
            yield CommitChunk(self.videos[first:last], head, columns, first)
            first = last

    def record(self, chunk: CommitChunk, replies: Sequence[ApplyReply]) -> None:
        """Record the store's replies about a chunk; chunks must come in their order."""
        self.replies += replies
        for video, reply in enumerate(replies, chunk.first):
            if isinstance(reply, Applied):
                if reply.duplicates or reply.rejected or reply.corrected:
                    self._record_applied(self._first_rows[video], reply)
            else:
                self._record_not_applied(video, reply)

    def record_lost(self, chunk: CommitChunk, fault: Exception) -> None:
        """Record that the store did not reply about a chunk; chunks must come in their order."""
        self.replies += [Lost()] * len(chunk.videos)
        rows = range(self._first_rows[chunk.first], self._first_rows[chunk.first + len(chunk.videos)])
        self._fail(rows, fault)
        self._count(rows, accepted=-1)
        for batch in self._batches_of(rows):
            self.lost[batch] += 1

    def stale_rows(self) -> list[RowBatch]:
        """The rows of the stale videos, batch by batch; a batch may have none."""
        rows = np.array(
            [
                origin
                for video in self.stale
                for row in range(*self._first_rows[video : video + 2])
                for origin in self._table.members(row)
            ],
            np.int64,
        )
        batches = np.searchsorted(self._starts, rows, side="right") - 1
        return [batch.part(np.sort(rows[batches == b]) - self._starts[b]) for b, batch in enumerate(self.batches)]

    def add_retry(self, retry: GroupCommit) -> None:
        """Add what became of ``stale_rows()``, which were sent again as ``retry``."""
        for outcome, more in zip(self.outcomes, retry.outcomes, strict=True):
            outcome.add(more)
        self.lost = [first + second for first, second in zip(self.lost, retry.lost, strict=True)]
        self.faults = [new or old for new, old in zip(retry.faults, self.faults, strict=True)]
        replies = dict(zip(retry.videos, retry.replies, strict=True))
        for video in self.stale:
            self.replies[video] = replies[self.videos[video]]

    def _record_applied(self, first: int, reply: Applied) -> None:
        self._record_exceptions(first, reply.duplicates, reply.rejected, reply.published_us, "accepted")
        for row in reply.corrected:
            self._count([first + row], corrected=1)

    def _record_not_applied(self, video: int, reply: ApplyReply) -> None:
        first, end = self._first_rows[video], self._first_rows[video + 1]
        rows = range(first, end)
        match reply:
            case Stale():
                self.stale.append(video)
                self._count(rows, accepted=-1)
            case DamagedReply():
                self._count(rows, accepted=-1)
                self._reject(first, [RefusedRow(row, "damaged", "") for row in range(end - first)], None)
            case ParkingFull():
                self._count(rows, accepted=-1)
                self._reject(first, [RefusedRow(0, "parking_full", "")], None)
            case Failed(message=message):
                self._fail(rows, ResponseError(message))
            case Parked(duplicates=[], rejected=[]):
                for batch, n in self._counts_by_batch(rows):
                    outcome = self.outcomes[batch]
                    outcome.accepted -= n
                    outcome.parked += n
                    outcome.parked_videos.append(self.videos[video])
            case Parked():
                others = {*reply.duplicates, *(refused.position for refused in reply.rejected)}
                for batch in set(self._batches_of([row for row in rows if row - first not in others])):
                    self.outcomes[batch].parked_videos.append(self.videos[video])
                self._count(rows, accepted=-1, parked=1)
                self._record_exceptions(first, reply.duplicates, reply.rejected, None, "parked")
            case Refused():
                self._count(rows, accepted=-1)
                self._reject(first, reply.rejected, reply.published_us)

    @cached_property
    def _owners(self) -> list[int]:
        """For each of the batches' rows, its batch."""
        return [b for b, batch in enumerate(self.batches) for _ in range(len(batch))]

    def _batches_of(self, rows: Sequence[int]) -> list[int]:
        """The batches of all rows that were merged into ``rows``, once for each such row."""
        owners, members = self._owners, self._table.members
        return [owners[origin] for row in rows for origin in members(row)]

    def _counts_by_batch(self, rows: Sequence[int]) -> Iterable[tuple[int, int]]:
        """How many of the rows that were merged into ``rows`` are each batch's."""
        batches = self._batches_of(rows)
        return Counter(batches).items() if len(batches) > 1 else [(batch, 1) for batch in batches]

    def _count(self, rows: Sequence[int], **changes: int) -> None:
        """Change counts of the batches' outcomes by so much for each row."""
        for batch, n in self._counts_by_batch(rows):
            outcome = self.outcomes[batch]
            for name, change in changes.items():
                setattr(outcome, name, getattr(outcome, name) + change * n)

    def _fail(self, rows: Sequence[int], fault: Exception) -> None:
        for batch in self._batches_of(rows):
            self.faults[batch] = fault

    def _record_exceptions(
        self,
        first: int,
        duplicates: Sequence[int],
        rejected: Sequence[RefusedRow],
        published_us: int | None,
        counted_as: str,
    ) -> None:
        """Count rows as duplicate or rejected that so far are counted as ``counted_as``."""
        self._count([first + row for row in duplicates], duplicate=1, **{counted_as: -1})
        self._count([first + refused.position for refused in rejected], **{counted_as: -1})
        self._reject(first, rejected, published_us)

    def _reject(self, first: int, rejected: Sequence[RefusedRow], published_us: int | None) -> None:
        for refused in rejected:
            for origin in self._table.members(first + refused.position):
                owner = self._owners[origin]
                batch, outcome = self.batches[owner], self.outcomes[owner]
                if not batch.list_rejections:
                    outcome.unlisted += 1
                    continue
                row = batch.row(origin - int(self._starts[owner]))
                outcome.rejections.append(rejection(row, refused.reason, refused.subject, published_us))
