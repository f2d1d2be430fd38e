"""One round of ingest: the rows of several batches, packed for the store, and what became of each batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from redis.exceptions import ResponseError

from service.store.rejections import rejection
from service.store.row import Outcome
from service.store.row_batch import COUNTERS, RowBatch
from service.store.row_table import Table


@dataclass(frozen=True, slots=True)
class CommitChunk:
    """Whole videos of a round, for one call of the store's function: what it takes besides the options."""

    videos: Sequence[str]
    head: dict[str, Any]
    columns: tuple[bytes, ...]
    first: int
    """Place of the first of ``videos`` in the round."""


def no_rows(video_id: str) -> CommitChunk:
    """A share of one video and no row."""
    return CommitChunk([video_id], {"names": [], "lengths": [0]}, (b"",) * 5, 0)


class GroupCommit:
    """Rows of batches that came together: where two rows have one id, the earlier batch's is the first.

    ``published_us``: publication times that are remembered, to merge rows by. The store refuses a video's rows that were
    merged by another time than it holds; they are left in ``stale``, to be sent again unmerged.
    """

    def __init__(self, batches: Sequence[RowBatch], published_us: Mapping[str, int] | None = None) -> None:
        self.batches = batches
        self.outcomes = [Outcome(accepted=len(batch)) for batch in batches]
        self.faults: list[Exception | None] = [None] * len(batches)
        self.lost = [0] * len(batches)
        self.stale: list[int] = []
        self.answers: list[Sequence[Any]] = []
        self._table = Table(batches)
        self._starts = np.concatenate([[0], np.cumsum([len(batch) for batch in batches])])
        self._merged_by = self._merge(published_us) if published_us is not None else None
        self._places: list[int] = np.searchsorted(self._table.codes, np.arange(len(self.videos) + 1)).tolist()

    @property
    def videos(self) -> Sequence[str]:
        """Every video of the round, once."""
        return self._table.videos

    def _merge(self, published_us: Mapping[str, int]) -> list[int] | None:
        table = self._table
        free = table.mergeable()
        if not free.any():
            return None
        published = np.array([published_us.get(video_id, -1) for video_id in self.videos], np.int64)
        by_row = published[table.codes]
        age_us = table.times_us - by_row
        free &= (by_row >= 0) & (age_us >= 0)
        if not free.any():
            return None
        merged = np.zeros(len(self.videos), np.int64)
        merged[table.codes[free]] = by_row[free]
        table.merge(free, age_us)
        merged_by: list[int] = merged.tolist()
        return merged_by

    def shares(self, rows: int, videos: int | None = None) -> Iterator[CommitChunk]:
        """The round in calls of about ``rows`` rows and at most ``videos`` videos, at least one video each."""
        table, places = self._table, self._places
        first = 0
        while first < len(self.videos):
            last = first + 1
            most = len(self.videos) if videos is None else min(len(self.videos), first + videos)
            while last < most and places[last + 1] - places[first] <= rows:
                last += 1
            part = slice(places[first], places[last])
            kinds = table.kinds[part]
            head: dict[str, Any] = {
                "names": table.names,
                "lengths": [places[v + 1] - places[v] for v in range(first, last)],
            }
            if table.cells is not None:
                rows_of = zip(table.cells[part], kinds.tolist(), strict=True)
                head["cells"] = [[x for cell in cells for x in cell] for cells, kind in rows_of if kind == COUNTERS]
            if self._merged_by is not None:
                head["expected"] = self._merged_by[first:last]
            columns = (
                table.times_us[part].astype("<f8").tobytes(),
                b"" if table.ids is None else b"".join(table.ids[part]),
                kinds.tobytes(),
                b"" if table.counts is None else table.counts[part].astype("<f8").tobytes(),
                b"" if table.reaches is None else table.reaches[part].astype("<f8").tobytes(),
            )
            yield CommitChunk(self.videos[first:last], head, columns, first)
            first = last

    def settle(self, share: CommitChunk, answers: Sequence[Sequence[Any]]) -> None:
        """Enter what the store answered for a share; shares come in their order."""
        self.answers += answers
        for video, answer in enumerate(answers, share.first):
            if len(answer) == 3 and answer[0] in (0, 1):
                continue
            first, last = self._places[video], self._places[video + 1]
            match answer[0]:
                case "stale":
                    self.stale.append(video)
                    self._count(range(first, last), accepted=-1)
                case "damaged":
                    self._count(range(first, last), accepted=-1)
                    self._reject(first, [(row, "damaged", "") for row in range(last - first)], None)
                case "full":
                    self._count(range(first, last), accepted=-1)
                    self._reject(first, [(0, "parking_full", "")], None)
                case "error":
                    self._fail(range(first, last), ResponseError(answer[1]))
                case "parked" if not (answer[2] or answer[3]):
                    for batch, n in self._by_batch(range(first, last)):
                        outcome = self.outcomes[batch]
                        outcome.accepted -= n
                        outcome.parked += n
                        outcome.parked_videos.append(self.videos[video])
                case "parked":
                    others = {*answer[2], *(row for row, _, _ in answer[3])}
                    parked = [row for row in range(first, last) if row - first not in others]
                    for batch in set(self._batches(parked)):
                        self.outcomes[batch].parked_videos.append(self.videos[video])
                    self._count(range(first, last), accepted=-1, parked=1)
                    self._except(first, answer[2], answer[3], None, "parked")
                case "refused":
                    self._count(range(first, last), accepted=-1)
                    self._reject(first, answer[2], answer[1])
                case _ if answer[3] or answer[4] or answer[5]:
                    self._except(first, answer[3], answer[4], answer[2], "accepted")
                    for row in answer[5]:
                        self._count([first + row], corrected=1)

    def lose(self, share: CommitChunk, fault: Exception) -> None:
        """Enter that the store did not answer for a share; shares come in their order."""
        self.answers += [("lost",)] * len(share.videos)
        rows = range(self._places[share.first], self._places[share.first + len(share.videos)])
        self._fail(rows, fault)
        self._count(rows, accepted=-1)
        for batch in self._batches(rows):
            self.lost[batch] += 1

    def again(self) -> list[RowBatch]:
        """The rows of the stale videos, batch by batch; a batch may have none."""
        rows = np.array(
            [o for v in self.stale for row in range(*self._places[v : v + 2]) for o in self._table.members(row)],
            np.int64,
        )
        batches = np.searchsorted(self._starts, rows, side="right") - 1
        return [batch.part(np.sort(rows[batches == b]) - self._starts[b]) for b, batch in enumerate(self.batches)]

    def add(self, again: GroupCommit) -> None:
        """Enter what became of the rows of ``again()``."""
        for outcome, more in zip(self.outcomes, again.outcomes, strict=True):
            outcome.add(more)
        self.lost = [first + second for first, second in zip(self.lost, again.lost, strict=True)]
        self.faults = [new or old for new, old in zip(again.faults, self.faults, strict=True)]
        answers = dict(zip(again.videos, again.answers, strict=True))
        for video in self.stale:
            self.answers[video] = answers[self.videos[video]]

    @cached_property
    def _owners(self) -> list[int]:
        """The batch of each of all rows of the batches."""
        return [place for place, batch in enumerate(self.batches) for _ in range(len(batch))]

    def _batches(self, rows: Sequence[int]) -> list[int]:
        """The batch of each row of the batches that ``rows`` stand for."""
        owners, members = self._owners, self._table.members
        return [owners[origin] for row in rows for origin in members(row)]

    def _by_batch(self, rows: Sequence[int]) -> Iterable[tuple[int, int]]:
        """How many rows of each batch ``rows`` stand for."""
        batches = self._batches(rows)
        return Counter(batches).items() if len(batches) > 1 else [(batch, 1) for batch in batches]

    def _count(self, rows: Sequence[int], **changes: int) -> None:
        for batch, n in self._by_batch(rows):
            outcome = self.outcomes[batch]
            for name, change in changes.items():
                setattr(outcome, name, getattr(outcome, name) + change * n)

    def _fail(self, rows: Sequence[int], fault: Exception) -> None:
        for batch in self._batches(rows):
            self.faults[batch] = fault

    def _except(
        self, first: int, duplicates: Sequence[int], refused: Sequence[Any], published_us: int | None, counted: str
    ) -> None:
        self._count([first + row for row in duplicates], duplicate=1, **{counted: -1})
        self._count([first + row for row, _, _ in refused], **{counted: -1})
        self._reject(first, refused, published_us)

    def _reject(self, first: int, refused: Sequence[Any], published_us: int | None) -> None:
        for row, reason, place in refused:
            for origin in self._table.members(first + row):
                batch = self._owners[origin]
                if not self.batches[batch].listed:
                    self.outcomes[batch].unlisted += 1
                    continue
                refusal = rejection(
                    self.batches[batch].row(origin - int(self._starts[batch])), reason, place, published_us
                )
                self.outcomes[batch].rejections.append(refusal)
