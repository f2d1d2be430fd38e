"""Sends rows to the store's function ``apply``, in calls that do not hold up the server or the event loop for long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import msgspec

from service.fair_turns import ROWS, Turns
from service.problems import Unavailable
from service.store.change_publisher import ChangePublisher
from service.store.commit import CommitChunk, GroupCommit
from service.store.keys import video_prefix
from service.store.redis.connection import RedisConnection
from service.store.replies import Applied, ApplyReply, decode_apply
from service.store.rows.row_batch import RowBatch

REMEMBERED_VIDEOS: Final = 250_000
"""Videos whose publication time is kept in memory, to merge rows by."""
ROWS_PER_CALL: Final = 500
"""Approximate rows in one call: two to four milliseconds of the server, which answers no other client in that time."""
VIDEOS_PER_CALL: Final = 64
"""Limit of the videos in one call while several clients are active. Calls are then sent one by one, because the server answers no
other client between calls that are sent together."""


@dataclass(frozen=True, slots=True)
class RowRetention:
    """How long the store keeps ids and parked rows, and how many parked rows for each video."""

    dedup_ttl_s: int
    park_rows: int
    park_ttl_s: int


class RowApplier:
    """Applies batches of rows, and remembers the publication times that the replies contain."""

    def __init__(
        self, connection: RedisConnection, retention: RowRetention, publisher: ChangePublisher, turns: Turns
    ) -> None:
        self._connection, self._retention, self._publisher, self._turns = connection, retention, publisher, turns
        self._published_us: dict[str, int] = {}

    def forget(self, video_id: str) -> None:
        """Drop what is remembered about a video."""
        self._published_us.pop(video_id, None)

    async def apply(self, batches: Sequence[RowBatch], *, strict: bool = False, park: bool = True) -> GroupCommit:
        """Apply the rows of batches, merged where that is possible, and stale ones a second time unmerged.

        Raises Unavailable when the server does not answer the first call.
        """
        commit = GroupCommit(batches, self._published_us)
        await self._send(commit, strict=strict, park=park)
        if commit.stale:
            retry = GroupCommit(commit.stale_rows())
            await self._send(retry, strict=strict, park=park)
            commit.add_retry(retry)
        return commit

    async def call(
        self, chunks: Sequence[CommitChunk], options: Mapping[str, Any], *, park: bool = True
    ) -> list[Sequence[ApplyReply] | Unavailable]:
        """Send chunks in one pipeline; the replies about each chunk's videos, Unavailable for a chunk without a reply."""
        limits = {
            **options,
            "dedup_ttl_s": self._retention.dedup_ttl_s,
            "park_rows": self._retention.park_rows if park and not self._publisher.parking_full else 0,
            "park_ttl_s": self._retention.park_ttl_s,
        }
        calls = [
            (list(map(video_prefix, chunk.videos)), [msgspec.msgpack.encode({**limits, **chunk.head}), *chunk.columns])
            for chunk in chunks
        ]
        packed = await self._connection.call("apply", calls, partial=True)
        answers = [reply if isinstance(reply, Unavailable) else decode_apply(reply) for reply in packed]
        for chunk, replies in zip(chunks, answers, strict=True):
            if not isinstance(replies, Unavailable):
                self._remember(chunk.videos, replies)
        return answers

    def _remember(self, videos: Sequence[str], replies: Sequence[ApplyReply]) -> None:
        for video_id, reply in zip(videos, replies, strict=True):
            if isinstance(reply, Applied):
                self._published_us[video_id] = reply.published_us
        while len(self._published_us) > REMEMBERED_VIDEOS:
            del self._published_us[next(iter(self._published_us))]

    async def _send(self, commit: GroupCommit, *, strict: bool, park: bool) -> None:
        """Send a commit's chunks. When they go one by one and the store stops answering, the remaining ones are lost as well."""
        clustered = await self._connection.clustered()
        one_by_one = self._turns.crowded and not clustered
        chunks = commit.chunks(1 if clustered else ROWS_PER_CALL, VIDEOS_PER_CALL if one_by_one else None)
        started = False
        while some := list(islice(chunks, 1 if one_by_one else None)):
            if started:
                await self._turns.take(ROWS)
            try:
                answers = await self.call(some, {"strict": strict}, park=park)
            except Unavailable as problem:
                if not started:
                    raise
                for chunk in (*some, *chunks):
                    commit.record_lost(chunk, problem)
                return
            for chunk, replies in zip(some, answers, strict=True):
                if started:
                    # Recording a chunk takes some tenths of a millisecond.
                    await self._turns.take(ROWS)
                started = True
                if isinstance(replies, Unavailable):
                    commit.record_lost(chunk, replies)
                else:
                    commit.record(chunk, replies)
