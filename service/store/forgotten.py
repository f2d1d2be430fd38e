"""Tombstones of deleted videos. With them, the service finds and removes deleted videos that banks and streams still contain.

A tombstone is a digest of the video's id (``model.bank.tombstone``). The id itself is not kept. A tombstone is kept forever,
because a bank that is opened years later may still contain the video. A tombstone takes about 0.15 KB.

Code that writes a video's id outside the video's own keys must look for a tombstone *after* the write. A deletion first writes
the tombstone, and then removes the ids that it finds. Therefore either the writer finds the tombstone, or the deletion finds the id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from model.bank.tombstone import tombstone
from service.store import keys
from service.store.redis.connection import Command, RedisConnection

_KEPT_S: Final = 90 * 86_400
"""Time in seconds for which a bank's progress in removing deleted videos is kept while no service opens the bank."""

# This script is also allowed at maxmemory, because a deletion frees memory. The times of tombstones only increase, even if a
# new primary's clock is behind the old primary's clock.
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
"""The digest of a video's id, and the time of the deletion (us, by the store's clock)."""


class Forgotten:
    """The tombstones in the store. Every method raises Unavailable if the store does not answer."""

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection
        self.newest_us: float = float("inf")
        """Time (us) of the newest tombstone that this process knows of. Infinite until the store has been asked."""

    async def bury(self, video_id: str) -> int:
        """Write a video's tombstone. Return its time (us)."""
        command: Command = ["EVAL", _BURY, 2, keys.FORGOTTEN, keys.FORGOTTEN_LIFTED, tombstone(video_id)]
        at_us = int((await self._connection.pipeline("forget", [command]))[0])
        if self.newest_us < at_us:
            self.newest_us = at_us
        return at_us

    async def lift(self, video_id: str) -> bool:
        """Record that a deleted video was registered again. Banks may then contain it again.

        Return whether the video had a tombstone.
        """
        command: Command = ["EVAL", _LIFT, 2, keys.FORGOTTEN, keys.FORGOTTEN_LIFTED, tombstone(video_id)]
        return bool((await self._connection.pipeline("forget", [command]))[0])

    async def since(self, us: float) -> list[Tombstone]:
        """Return the tombstones that are later than a time (us), the oldest first."""
        later: Command = ["ZRANGE", keys.FORGOTTEN, f"({us:.0f}", "+inf", "BYSCORE", "WITHSCORES"]
        found, last = await self._connection.pipeline(
            "forget", [later, ["ZRANGE", keys.FORGOTTEN, -1, -1, "WITHSCORES"]]
        )
        newest = _scored(last)
        found_us = newest[0][1] if newest else 0
        # `bury` may have noted a newer tombstone while this reply was on its way.
        self.newest_us = found_us if self.newest_us == float("inf") else max(self.newest_us, found_us)
        return _scored(found)

    async def lifted(self) -> set[str]:
        """Return the digests of the deleted videos that were registered again."""
        found = (await self._connection.pipeline("forget", [["ZRANGE", keys.FORGOTTEN_LIFTED, 0, -1]]))[0]
        return {digest.decode() for digest in found}

    async def gone(self, since_us: Mapping[str, int]) -> dict[str, int]:
        """Return the deletion times of the videos that were deleted at or after the time given for them.

        ``since_us`` gives a time for each video. All times are in microseconds by the store's clock.
        """
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
        """Return the time (us) up to which a bank has removed all deleted videos. Return 0 for an unknown bank."""
        return await self._time(keys.forgotten_by(bank))

    async def obey(self, bank: str, us: int) -> None:
        """Record that a bank has removed all videos that were deleted up to a time (us)."""
        await self._note(keys.forgotten_by(bank), us, _KEPT_S)

    async def swept(self) -> int:
        """Return the time (us) of the newest tombstone whose video is no longer in any stream."""
        return await self._time(keys.FORGOTTEN_SWEPT)

    async def sweep(self, us: int) -> None:
        """Record that no stream contains a video that was deleted up to a time (us)."""
        await self._note(keys.FORGOTTEN_SWEPT, us, 0)

    async def rewritten(self) -> int:
        """Return the time (us) of the newest tombstone whose video is no longer in the embedded store's log."""
        return await self._time(keys.FORGOTTEN_REWRITTEN)

    async def rewrite(self, us: int) -> None:
        """Record that the embedded store's log contains no video that was deleted up to a time (us).

        The log must have been rewritten after ``sweep`` was called with this time.
        """
        await self._note(keys.FORGOTTEN_REWRITTEN, us, 0)

    async def _time(self, key: str) -> int:
        found = (await self._connection.pipeline("forget", [["GET", key]]))[0]
        return int(found) if found is not None and found.isdigit() else 0

    async def _note(self, key: str, us: int, ttl_s: int) -> None:
        await self._connection.pipeline("forget", [["EVAL", _NOTE, 1, key, us, ttl_s]])


def _scored(reply: Sequence[Any]) -> list[Tombstone]:
    """Convert a reply with scores to (digest, time) pairs. The reply is a flat list or a list of pairs."""
    pairs: Iterable[Any] = reply
    if reply and isinstance(reply[0], bytes):
        pairs = zip(reply[::2], reply[1::2], strict=True)
    return [(digest.decode(), int(float(at_us))) for digest, at_us in pairs]
