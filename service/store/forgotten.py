"""Tombstones of deleted videos: everything that may still hold a video learns from them that it must drop it.

A tombstone is a digest of the id (``model.bank.tombstone``); the id itself is not kept. A tombstone stays forever, because a bank
that is opened years later may hold the video; it takes about 0.15 KB.

Code that writes a video's id anywhere outside the video's own keys must look for a tombstone *after* the write. A deletion writes
the tombstone first, and then removes the ids that it finds. So either the writer finds the tombstone, or the deletion finds the id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from model.bank.tombstone import tombstone
from service.store import keys
from service.store.redis.connection import Command, RedisConnection

_KEPT_S: Final = 90 * 86_400
"""Seconds for which the progress of a bank that no service opens is kept."""

# Allowed at maxmemory too: a deletion frees memory. Times only increase, even where a new primary's clock is behind.
_BURY: Final = """#!lua flags=allow-oom
local clock, newest = redis.call('TIME'), redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
local now_us = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
if newest[2] then now_us = math.max(now_us, tonumber(newest[2]) + 1) end
now_us = string.format('%.0f', now_us)
redis.call('ZADD', KEYS[1], now_us, ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return now_us
"""
_LIFT: Final = """
local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not score then return 0 end
redis.call('ZADD', KEYS[2], score, ARGV[1])
return 1
"""

_NOTE: Final = """#!lua flags=allow-oom
redis.call('SET', KEYS[1], ARGV[1])
if tonumber(ARGV[2]) > 0 then redis.call('EXPIRE', KEYS[1], ARGV[2]) end
"""

Tombstone = tuple[str, int]
"""A digest, and the time of the deletion (us, by the store's clock)."""


class Forgotten:
    """The tombstones in the store; every method raises Unavailable when the store does not answer."""

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection
        self.newest_us: float = float("inf")
        """Time of the newest tombstone that is known here; infinite until the store has been asked."""

    async def bury(self, video_id: str) -> int:
        """Write a tombstone; returns its time (us)."""
        command: Command = ["EVAL", _BURY, 2, keys.FORGOTTEN, keys.FORGOTTEN_LIFTED, tombstone(video_id)]
        at_us = int((await self._connection.pipeline("forget", [command]))[0])
        if self.newest_us < at_us:
            self.newest_us = at_us
        return at_us

    async def lift(self, video_id: str) -> bool:
        """Note that the video is registered again, so banks may have it again; returns whether there was a tombstone."""
        command: Command = ["EVAL", _LIFT, 2, keys.FORGOTTEN, keys.FORGOTTEN_LIFTED, tombstone(video_id)]
        return bool((await self._connection.pipeline("forget", [command]))[0])

    async def since(self, us: float) -> list[Tombstone]:
        """Tombstones later than a time (us), oldest first."""
        later: Command = ["ZRANGE", keys.FORGOTTEN, f"({us:.0f}", "+inf", "BYSCORE", "WITHSCORES"]
        found, last = await self._connection.pipeline(
            "forget", [later, ["ZRANGE", keys.FORGOTTEN, -1, -1, "WITHSCORES"]]
        )
        newest = _scored(last)
        found_us = newest[0][1] if newest else 0
        # A deletion that ended while the reply was on its way is later than the reply.
        self.newest_us = found_us if self.newest_us == float("inf") else max(self.newest_us, found_us)
        return _scored(found)

    async def lifted(self) -> set[str]:
        """Digests of deleted videos that were registered again."""
        found = (await self._connection.pipeline("forget", [["ZRANGE", keys.FORGOTTEN_LIFTED, 0, -1]]))[0]
        return {digest.decode() for digest in found}

    async def gone(self, since_us: Mapping[str, int]) -> dict[str, int]:
        """Of the given videos, those deleted at or after their given time (us, by the store's clock), and when."""
        if not since_us or not self.newest_us:
            return {}
        command: Command = ["ZMSCORE", keys.FORGOTTEN, *map(tombstone, since_us)]
        scores = (await self._connection.pipeline("forget", [command]))[0]
        return {
            video_id: int(float(score))
            for (video_id, us), score in zip(since_us.items(), scores, strict=True)
            if score is not None and float(score) >= us
        }

    async def obeyed(self, bank: str) -> int:
        """Time up to which a bank has obeyed the tombstones (us); 0 for an unknown bank."""
        return await self._time(keys.forgotten_by(bank))

    async def obey(self, bank: str, us: int) -> None:
        """Note that a bank has obeyed all tombstones up to a time (us)."""
        await self._note(keys.forgotten_by(bank), us, _KEPT_S)

    async def swept(self) -> int:
        """Time (us) of the newest tombstone whose video is no longer in any stream."""
        return await self._time(keys.FORGOTTEN_SWEPT)

    async def sweep(self, us: int) -> None:
        """Note that all streams were swept for tombstones up to a time (us)."""
        await self._note(keys.FORGOTTEN_SWEPT, us, 0)

    async def rewritten(self) -> int:
        """Time (us) of the newest tombstone whose video is no longer in the embedded store's log."""
        return await self._time(keys.FORGOTTEN_REWRITTEN)

    async def rewrite(self, us: int) -> None:
        """Note that the embedded store's log was rewritten after the sweep for tombstones up to a time (us)."""
        await self._note(keys.FORGOTTEN_REWRITTEN, us, 0)

    async def _time(self, key: str) -> int:
        found = (await self._connection.pipeline("forget", [["GET", key]]))[0]
        return int(found) if found is not None and found.isdigit() else 0

    async def _note(self, key: str, us: int, ttl_s: int) -> None:
        await self._connection.pipeline("forget", [["EVAL", _NOTE, 1, key, us, ttl_s]])


def _scored(reply: Sequence[Any]) -> list[Tombstone]:
    """The (digest, time) pairs of a reply with scores, which is flat or in pairs."""
    pairs: Iterable[Any] = reply
    if reply and isinstance(reply[0], bytes):
        pairs = zip(reply[::2], reply[1::2], strict=True)
    return [(digest.decode(), int(float(at_us))) for digest, at_us in pairs]
