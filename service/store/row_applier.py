"""Sends rows to the store's Lua function ``apply``, in calls that are short enough not to block the server or the event loop."""

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
"""Maximum number of videos whose publication time is kept in memory. The times are needed to merge rows."""
ROWS_PER_CALL: Final = 500
"""Approximate number of rows in one call. The server needs two to four milliseconds for such a call, and answers no other client
during that time."""
VIDEOS_PER_CALL: Final = 64
"""Maximum number of videos in one call while several clients are active. Calls are then also sent one by one, because the server
answers no other client between calls that are sent together."""


@dataclass(frozen=True, slots=True)
class RowRetention:
    """How long the store keeps event ids and parked rows, and how many parked rows it keeps per video."""

    dedup_ttl_s: int
    park_rows: int
    park_ttl_s: int


class RowApplier:
    """Applies batches of rows. It remembers the videos' publication times, which the store's replies contain."""

    def __init__(
        self, connection: RedisConnection, retention: RowRetention, publisher: ChangePublisher, turns: Turns
    ) -> None:
        self._connection, self._retention, self._publisher, self._turns = connection, retention, publisher, turns
        self._published_us: dict[str, int] = {}

    def forget(self, video_id: str) -> None:
        """Forget a video's publication time."""
        self._published_us.pop(video_id, None)

    async def apply(self, batches: Sequence[RowBatch], *, strict: bool = False, park: bool = True) -> GroupCommit:
        """Apply the rows of batches. Rows are merged first if possible. Stale rows are sent a second time, unmerged.

        Rows are stale if they were merged with an outdated publication time.

        Args:
            batches: the rows.
            strict: whether all rows of a video are refused if one of them is refused.
            park: whether rows of unregistered videos may be parked.

        Raises:
            Unavailable: if the server does not answer the first call.
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
        """Send chunks in one pipeline. Return one list of replies per chunk, or Unavailable for a chunk without a reply.

        The replies of a chunk are in the order of its videos.
        """
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
        """Send a commit's chunks, and record the replies.

        The chunks may be sent one by one. If the store then stops answering, all remaining chunks are recorded as lost.
        """
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
                    # Recording a chunk takes a few tenths of a millisecond, so other work gets a turn first.
                    await self._turns.take(ROWS)
                started = True
                if isinstance(replies, Unavailable):
                    commit.record_lost(chunk, replies)
                else:
                    commit.record(chunk, replies)
