"""One group commit: the rows of several batches, packed for the store, and the outcome of each batch."""

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
    """Some videos of a commit with all their rows, for one call of the store's Lua function ``apply``.

    The fields hold all arguments of the call except its options.
    """

    videos: Sequence[str]
    head: dict[str, Any]
    columns: tuple[bytes, ...]
    first: int
    """Position of ``videos[0]`` in the commit."""


def empty_chunk(video_id: str) -> CommitChunk:
    """Return a chunk with one video and no rows."""
    return CommitChunk([video_id], {"names": [], "lengths": [0]}, (b"",) * 5, 0)


class GroupCommit:
    """Rows of batches that arrived together.

    If several rows of a video have the same event id, the row of the earliest batch is stored.

    ``published_us``: the known publication time of each video. This time is needed to merge rows. If the store has a different time
    for a video, the store refuses that video's merged rows. The video is then in ``stale``, and its rows must be sent again unmerged.
    """

    def __init__(self, batches: Sequence[RowBatch], published_us: Mapping[str, int] | None = None) -> None:
        self.batches = batches
        self.outcomes = [Outcome(accepted=len(batch)) for batch in batches]
        """Outcome of each batch. At first all rows count as accepted. ``record`` corrects the counts."""
        self.faults: list[Exception | None] = [None] * len(batches)
        self.lost = [0] * len(batches)
        """Per batch, the number of rows whose outcome is unknown."""
        self.stale: list[int] = []
        """Positions of the stale videos in ``videos``."""
        self.replies: list[ApplyReply | Lost] = []
        self._table = RowTable(batches)
        self._starts = np.concatenate([[0], np.cumsum([len(batch) for batch in batches])])
        self._merged_by = self._table.merge_known(published_us) if published_us is not None else None
        bounds = np.searchsorted(self._table.video_codes, np.arange(len(self.videos) + 1))
        self._first_rows: list[int] = bounds.tolist()

    @property
    def videos(self) -> Sequence[str]:
        """The ids of all videos in the commit. Each id occurs once."""
        return self._table.videos

    def chunks(self, rows: int, videos: int | None = None) -> Iterator[CommitChunk]:
        """Yield the commit in chunks of about ``rows`` rows and at most ``videos`` videos.

        Each chunk has at least one video.
        """
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
        """Record the store's replies to a chunk. Chunks must be recorded in the order of ``chunks``."""
        self.replies += replies
        for video, reply in enumerate(replies, chunk.first):
            if isinstance(reply, Applied):
                if reply.duplicates or reply.rejected or reply.corrected:
                    self._record_applied(self._first_rows[video], reply)
            else:
                self._record_not_applied(video, reply)

    def record_lost(self, chunk: CommitChunk, fault: Exception) -> None:
        """Record that the store did not reply to a chunk. Chunks must be recorded in the order of ``chunks``."""
        self.replies += [Lost()] * len(chunk.videos)
        rows = range(self._first_rows[chunk.first], self._first_rows[chunk.first + len(chunk.videos)])
        self._fail(rows, fault)
        self._count(rows, accepted=-1)
        for batch in self._batches_of(rows):
            self.lost[batch] += 1

    def stale_rows(self) -> list[RowBatch]:
        """Return the rows of the stale videos, as one batch per original batch. A batch may be empty."""
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
        """Add the outcomes of the stale rows, which were sent again as the commit ``retry``."""
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
        """Index of the batch that each original row belongs to. Original rows are the batches' rows before merging."""
        return [b for b, batch in enumerate(self.batches) for _ in range(len(batch))]

    def _batches_of(self, rows: Sequence[int]) -> list[int]:
        """Return the batch index of each original row that was merged into ``rows``."""
        owners, members = self._owners, self._table.members
        return [owners[origin] for row in rows for origin in members(row)]

    def _counts_by_batch(self, rows: Sequence[int]) -> Iterable[tuple[int, int]]:
        """Return (batch, count) pairs: how many original rows of each batch were merged into ``rows``."""
        batches = self._batches_of(rows)
        return Counter(batches).items() if len(batches) > 1 else [(batch, 1) for batch in batches]

    def _count(self, rows: Sequence[int], **changes: int) -> None:
        """Add to counts in the batches' outcomes. ``changes`` says by how much each count changes per original row."""
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
        """Count rows as duplicate or rejected. These rows no longer count as ``counted_as``."""
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
