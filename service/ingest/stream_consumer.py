"""Reads rows from the Redis stream ``m3tr:ingest``. Each row counts exactly once, however many replicas there are.

An entry has the field ``kind`` (events or counters), and either ``row`` (a JSON object) or ``rows`` (a JSON list of objects). An
event without an id gets an id made of the entry's id. The store saves this id in the same call that counts the event. If the entry
is delivered again within ``dedup_ttl_s``, the second delivery therefore changes nothing. Cumulative counters need no id, because a
reading that is stored twice has no further effect.

An entry is acknowledged after the store has replied. If a consumer took an entry and did not finish it, a different consumer claims
the entry after ``claim_s``. Entries are claimed one at a time. Rows that can never be stored are written to ``m3tr:ingest:dead`` with the
reason. An entry is also written there if it was delivered ``DELIVERIES`` times and not finished. An entry that crashes its consumers
is thus given up. Entries that every group has acknowledged are deleted from the stream.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Sequence
from typing import Any, Final

import structlog
from redis.exceptions import RedisError, ResponseError

from model.engagement.history import Mode
from service.ingest.handler import Take
from service.ingest.stream_entry import StreamEntry
from service.metrics import Metrics
from service.problems import Malformed, Unavailable
from service.store import keys
from service.store.forgotten import Forgotten
from service.store.redis.blocking_reads import BLOCK_S, Reading, stream_id
from service.store.redis.server import Server
from service.store.rows.row_fields import VIDEO_ID

log = structlog.get_logger(__name__)

GROUP: Final = "m3tr"
DELIVERIES: Final = 5
"""Maximum number of deliveries of an entry."""
DEAD_KEPT: Final = 100_000
_ENTRIES: Final = 256
_PAUSE_S: Final = 1.0
_GONE_S: Final = 3600
"""Idle time in seconds after which a consumer without pending entries is removed from the group."""


class Consumer(Reading):
    """One consumer of the stream's consumer group. Each service process has one consumer."""

    _what = "the stream of rows"

    def __init__(
        self,
        server: Server | str,
        take: Take,
        metrics: Metrics,
        *,
        deadline_s: float,
        claim_s: float,
        batch_rows: int,
        forgotten: Forgotten | None = None,
    ) -> None:
        super().__init__(server, deadline_s)
        self._take, self._metrics, self._forgotten = take, metrics, forgotten
        self._claim_ms, self._batch_rows = round(claim_s * 1000), batch_rows
        self._name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"

    async def _run(self) -> None:
        # When this task ends, other consumers claim the entries that are not acknowledged yet. Storing an entry twice is harmless.
        while True:
            try:
                await self._connect()
                await self._join()
                self._failures = 0
                await self._follow()
            except (RedisError, OSError, TimeoutError) as error:
                # NOGROUP means that the stream was deleted together with its consumer group.
                await asyncio.sleep(_PAUSE_S if "NOGROUP" in str(error) else await self._missed(error))
            except Exception:
                log.exception("reading the stream of rows failed")
                await asyncio.sleep(_PAUSE_S)

    async def _join(self) -> None:
        """Wait for the stream's first entry, then create the group. If there are no producers, no key is created."""
        while not await self._redis.xread({keys.INGEST: "0-0"}, count=1, block=BLOCK_S * 1000):
            pass
        try:
            await self._redis.xgroup_create(keys.INGEST, GROUP, id="0-0")
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        block_ms = max(1, min(BLOCK_S * 1000, self._claim_ms // 2))
        checked_at = float("-inf")
        while True:
            if loop.time() - checked_at >= block_ms / 1000:
                checked_at = loop.time()
                await self._take_over()
                await self._measure()
            reply = await self._redis.xreadgroup(GROUP, self._name, {keys.INGEST: ">"}, count=_ENTRIES, block=block_ms)
            if reply:
                await self._handle([StreamEntry(name, fields) for name, fields in reply[0][1]])

    async def _take_over(self) -> None:
        """Claim and handle the entries that other consumers did not finish.

        Each entry is claimed only after the previous one is done. If one entry crashes this process, the following entries have
        therefore not used up a delivery.
        """
        position = "-"
        while True:
            pending = await self._redis.xpending_range(keys.INGEST, GROUP, position, "+", _ENTRIES, idle=self._claim_ms)
            for entry in pending:
                await self._claim(entry["message_id"], entry["times_delivered"])
            if len(pending) < _ENTRIES:
                return
            position = f"({pending[-1]['message_id'].decode()}"

    async def _claim(self, entry_id: bytes, deliveries: int) -> None:
        """Claim and handle one entry, unless a different consumer has claimed it.

        ``deliveries``: number of earlier deliveries. If there were too many, the entry becomes a dead letter.
        """
        taken = await self._redis.xclaim(keys.INGEST, GROUP, self._name, self._claim_ms, [entry_id])
        for name, fields in taken:
            entry = StreamEntry(name, fields)
            if deliveries >= DELIVERIES:
                entry.dead.append((None, {"reason": "deliveries", "allowed": f"{DELIVERIES} deliveries"}))
                await self._finish([entry])
            else:
                await self._handle([entry])

    async def _handle(self, entries: Sequence[StreamEntry]) -> None:
        """Store the rows of several entries together, and acknowledge the entries."""
        batches: dict[Mode, list[tuple[StreamEntry, Any]]] = {"events": [], "counters": []}
        for entry in entries:
            try:
                kind, items = entry.rows()
            except Malformed as problem:
                entry.dead.append((None, {"reason": "malformed", **problem.body()}))
            else:
                batches[kind] += [(entry, item) for item in items]
        for kind, items in (await self._without_deleted(batches)).items():
            for start in range(0, len(items), self._batch_rows):
                await self._store(kind, items[start : start + self._batch_rows])
        await self._finish(entries)

    async def _without_deleted(
        self, batches: dict[Mode, list[tuple[StreamEntry, Any]]]
    ) -> dict[Mode, list[tuple[StreamEntry, Any]]]:
        """Leave out the rows that entered the stream before their video was deleted. Return the remaining batches."""
        if self._forgotten is None:
            return batches
        since_us: dict[str, int] = {}
        for items in batches.values():
            for entry, row in items:
                entry_us = stream_id(entry.entry_id)[0] * 1000
                if entry_us <= self._forgotten.newest_us and (video_id := _video_of(row)) is not None:
                    since_us[video_id] = min(entry_us, since_us.get(video_id, entry_us))
        deleted_us = await self._deleted(since_us)
        if not deleted_us:
            return batches
        kept: dict[Mode, list[tuple[StreamEntry, Any]]] = {}
        for kind, items in batches.items():
            # A row that came after the deletion belongs to a new registration of the video. That registration may still follow.
            kept[kind] = [
                (entry, row)
                for entry, row in items
                if deleted_us.get(_video_of(row) or "", -1) < stream_id(entry.entry_id)[0] * 1000
            ]
            self._metrics.rows.labels(kind, "forgotten").inc(len(items) - len(kept[kind]))
        return kept

    async def _deleted(self, since_us: dict[str, int]) -> dict[str, int]:
        assert self._forgotten is not None
        while True:
            try:
                return await self._forgotten.gone(since_us)
            except Unavailable:
                await asyncio.sleep(_PAUSE_S)

    async def _store(self, kind: Mode, items: Sequence[tuple[StreamEntry, Any]]) -> None:
        while True:
            try:
                outcome = await self._take(kind, [item for _, item in items])
                break
            except Unavailable:
                # The entries are not at fault, so this failure must not use up their deliveries.
                await asyncio.sleep(_PAUSE_S)
            except Exception as error:
                owners = list({id(entry): entry for entry, _ in items}.values())
                if len(owners) == 1:
                    log.warning("storing an entry of the stream failed", id=owners[0].entry_id, error=repr(error))
                    owners[0].later = True
                    return
                for owner in owners:
                    await self._store(kind, [item for item in items if item[0] is owner])
                return
        for refused in outcome.rejections:
            entry, item = items[refused.index]
            if refused.retryable:
                entry.later = True
            else:
                why = {name: getattr(refused, name) for name in ("reason", "field", "value", "allowed")}
                entry.dead.append((item, why))

    async def _finish(self, entries: Sequence[StreamEntry]) -> None:
        """Write the dead letters, then acknowledge the entries that are done."""
        done = [entry for entry in entries if not entry.later]
        # The two streams may be on different servers, so the two writes are not atomic. The dead letters must be written first.
        if any(entry.dead for entry in done):
            async with self._redis.pipeline(transaction=False) as pipe:
                for entry in done:
                    for row, why in entry.dead:
                        pipe.xadd(keys.INGEST_DEAD, entry.dead_entry(row, why), maxlen=DEAD_KEPT, approximate=True)
                await pipe.execute()
        if done:
            await self._redis.xack(keys.INGEST, GROUP, *(entry.entry_id for entry in done))
        self._metrics.stream_dead.inc(sum(len(entry.dead) for entry in done))

    async def _measure(self) -> None:
        """Measure the group's lag, delete the entries that every group has finished, and remove consumers idle for ``_GONE_S``."""
        done: list[tuple[int, int]] = []
        for group in await self._redis.xinfo_groups(keys.INGEST):
            if group["name"] == GROUP.encode():
                self._metrics.stream_lag.set(group["lag"] or 0)
                self._metrics.stream_pending.set(group["pending"])
            pending = await self._redis.xpending(keys.INGEST, group["name"]) if group["pending"] else None
            if pending and pending["min"] is not None:
                done.append(stream_id(pending["min"]))
            else:
                time_ms, sequence = stream_id(group["last-delivered-id"])
                done.append((time_ms, sequence + 1))
        if done:
            time_ms, sequence = min(done)
            await self._redis.xtrim(keys.INGEST, minid=f"{time_ms}-{sequence}", approximate=False)
        for consumer in await self._redis.xinfo_consumers(keys.INGEST, GROUP):
            if consumer["pending"] == 0 and consumer["idle"] > _GONE_S * 1000:
                await self._redis.xgroup_delconsumer(keys.INGEST, GROUP, consumer["name"])


def _video_of(row: Any) -> str | None:
    """Return the id of the video that a row names, or None if the row has no valid id."""
    video_id = row.get(VIDEO_ID) if isinstance(row, dict) else None
    if not isinstance(video_id, str):
        return None
    try:
        video_id.encode()
    except UnicodeEncodeError:
        return None
    return video_id
