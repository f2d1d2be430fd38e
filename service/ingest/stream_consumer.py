"""Rows from the Redis stream ``m3tr:ingest``: exactly once in effect, by any number of replicas.

An entry has the fields ``kind`` (events or counters) and ``row`` (a JSON object) or ``rows`` (a JSON list of them). An event
without an id gets one made of its entry's: it is stored in the same call as the count, so an entry that is delivered again
changes nothing (for ``dedup_ttl_s``). Cumulative counters cannot count twice, and need none.

An entry is acknowledged after the store's answer. What somebody took and did not finish is taken over after ``claim_s``, one
entry at a time. Rows that can never be taken go to ``m3tr:ingest:dead`` with the reason, and so does an entry after its fifth
delivery: what kills the processes that take it costs one dead letter. Entries that every group has acknowledged are trimmed.
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
from service.ingest.stream_entry import StreamEntry
from service.ingest.websocket import Take
from service.metrics import Metrics
from service.problems import Malformed, Unavailable
from service.store import keys
from service.store.forgotten import Forgotten
from service.store.redis.blocking_reads import BLOCK_S, Reading, stream_id
from service.store.redis.deployment import Server

log = structlog.get_logger(__name__)

GROUP: Final = "m3tr"
DELIVERIES: Final = 5
"""Deliveries of an entry, at most."""
DEAD_KEPT: Final = 100_000
_ENTRIES: Final = 256
_PAUSE_S: Final = 1.0
_FORGET_S: Final = 3600


class Consumer(Reading):
    """One member of the group."""

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
        # What is taken and not acknowledged at the end is taken over by others, and harmless if it was stored.
        while True:
            try:
                await self._connect()
                await self._join()
                self._failures = 0
                await self._follow()
            except (RedisError, OSError, TimeoutError) as error:
                # The stream was deleted, and the group with it.
                await asyncio.sleep(_PAUSE_S if "NOGROUP" in str(error) else await self._missed(error))
            except Exception:
                log.exception("the consumer of the stream of rows failed")
                await asyncio.sleep(_PAUSE_S)

    async def _join(self) -> None:
        """Wait for the stream's first entry, then make sure of the group: a service nobody streams to leaves no key."""
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
        looked_at = float("-inf")
        while True:
            if loop.time() - looked_at >= block_ms / 1000:
                looked_at = loop.time()
                await self._take_over()
                await self._measure()
            reply = await self._redis.xreadgroup(GROUP, self._name, {keys.INGEST: ">"}, count=_ENTRIES, block=block_ms)
            if reply:
                await self._handle([StreamEntry(name, fields) for name, fields in reply[0][1]])

    async def _take_over(self) -> None:
        """Take what others left, except what was delivered too often, which is dead.

        Each entry is claimed when the one before it is done: should one kill this process, no other is spent a delivery.
        """
        place = "-"
        while True:
            left = await self._redis.xpending_range(keys.INGEST, GROUP, place, "+", _ENTRIES, idle=self._claim_ms)
            for told in left:
                await self._claim(told["message_id"], told["times_delivered"])
            if len(left) < _ENTRIES:
                return
            place = f"({left[-1]['message_id'].decode()}"

    async def _claim(self, entry_id: bytes, deliveries: int) -> None:
        """Take one entry that was delivered so many times, unless another has it by now."""
        taken = await self._redis.xclaim(keys.INGEST, GROUP, self._name, self._claim_ms, [entry_id])
        for name, fields in taken:
            delivery = StreamEntry(name, fields)
            if deliveries >= DELIVERIES:
                delivery.dead.append((None, {"reason": "deliveries", "allowed": f"{DELIVERIES} deliveries"}))
                await self._finish([delivery])
            else:
                await self._handle([delivery])

    async def _handle(self, deliveries: Sequence[StreamEntry]) -> None:
        """Store the rows of these entries together, and acknowledge."""
        batches: dict[Mode, list[tuple[StreamEntry, Any]]] = {"events": [], "counters": []}
        for delivery in deliveries:
            try:
                kind, items = delivery.rows()
            except Malformed as problem:
                delivery.dead.append((None, {"reason": "malformed", **problem.body()}))
            else:
                batches[kind] += [(delivery, item) for item in items]
        for kind, items in (await self._remembered(batches)).items():
            for start in range(0, len(items), self._batch_rows):
                await self._store(kind, items[start : start + self._batch_rows])
        await self._finish(deliveries)

    async def _remembered(
        self, batches: dict[Mode, list[tuple[StreamEntry, Any]]]
    ) -> dict[Mode, list[tuple[StreamEntry, Any]]]:
        """Without rows that came before their video was deleted."""
        if self._forgotten is None:
            return batches
        since_us: dict[str, int] = {}
        for items in batches.values():
            for delivery, row in items:
                entry_us = stream_id(delivery.entry_id)[0] * 1000
                if entry_us <= self._forgotten.newest_us and (video_id := _video_of(row)) is not None:
                    since_us[video_id] = min(entry_us, since_us.get(video_id, entry_us))
        gone = await self._deleted(since_us)
        if not gone:
            return batches
        kept: dict[Mode, list[tuple[StreamEntry, Any]]] = {}
        for kind, items in batches.items():
            # A row that came later is for the video that was registered anew, or will be.
            kept[kind] = [
                (delivery, row)
                for delivery, row in items
                if gone.get(_video_of(row) or "", -1) < stream_id(delivery.entry_id)[0] * 1000
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
                # Not the entries' fault, so no delivery is spent on it.
                await asyncio.sleep(_PAUSE_S)
            except Exception as error:
                owners = list({id(delivery): delivery for delivery, _ in items}.values())
                if len(owners) == 1:
                    log.warning("an entry of the stream of rows failed", id=owners[0].entry_id, error=repr(error))
                    owners[0].later = True
                    return
                for owner in owners:
                    await self._store(kind, [item for item in items if item[0] is owner])
                return
        for refused in outcome.rejections:
            delivery, item = items[refused.index]
            if refused.retryable:
                delivery.later = True
            else:
                why = {name: getattr(refused, name) for name in ("reason", "field", "value", "allowed")}
                delivery.dead.append((item, why))

    async def _finish(self, deliveries: Sequence[StreamEntry]) -> None:
        """Bury what is dead, acknowledge what is done."""
        done = [delivery for delivery in deliveries if not delivery.later]
        # The two streams may be on two servers, and nothing may be acknowledged that is not buried.
        if any(delivery.dead for delivery in done):
            async with self._redis.pipeline(transaction=False) as pipe:
                for delivery in done:
                    for row, why in delivery.dead:
                        pipe.xadd(keys.INGEST_DEAD, delivery.dead_entry(row, why), maxlen=DEAD_KEPT, approximate=True)
                await pipe.execute()
        if done:
            await self._redis.xack(keys.INGEST, GROUP, *(delivery.entry_id for delivery in done))
        self._metrics.stream_dead.inc(sum(len(delivery.dead) for delivery in done))

    async def _measure(self) -> None:
        """Tell how far the group is, and drop entries that every group is done with, and consumers that are gone."""
        done: list[tuple[int, int]] = []
        for group in await self._redis.xinfo_groups(keys.INGEST):
            if group["name"] == GROUP.encode():
                self._metrics.stream_lag.set(group["lag"] or 0)
                self._metrics.stream_pending.set(group["pending"])
            left = await self._redis.xpending(keys.INGEST, group["name"]) if group["pending"] else None
            if left and left["min"] is not None:
                done.append(stream_id(left["min"]))
            else:
                time_ms, place = stream_id(group["last-delivered-id"])
                done.append((time_ms, place + 1))
        if done:
            time_ms, place = min(done)
            await self._redis.xtrim(keys.INGEST, minid=f"{time_ms}-{place}", approximate=False)
        for consumer in await self._redis.xinfo_consumers(keys.INGEST, GROUP):
            if consumer["pending"] == 0 and consumer["idle"] > _FORGET_S * 1000:
                await self._redis.xgroup_delconsumer(keys.INGEST, GROUP, consumer["name"])


def _video_of(row: Any) -> str | None:
    """The video that a row says it is for."""
    video_id = row.get("video_id") if isinstance(row, dict) else None
    if not isinstance(video_id, str):
        return None
    try:
        video_id.encode()
    except UnicodeEncodeError:
        return None
    return video_id
