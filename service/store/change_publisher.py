"""What the store tells besides a video's own keys: what changed, and for whom rows are parked.

Told after the change itself, outside the video's hash tag: losing it loses no row, because versions decide what is current.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import msgspec

from service.metrics import Metrics
from service.problems import Unavailable
from service.settings import RecordSettings
from service.store import keys
from service.store.redis.connection import Command, RedisConnection

Change = tuple[str, int]
"""A video id and its version; or the tombstone of a video that was forgotten, and 0."""

ENTRIES_KEPT: Final = 4096
CHANGES_AN_ENTRY: Final = 256
_CHUNK: Final = 500
"""Members in one command."""


class ChangePublisher:
    """Tells changes; ``parking_full`` says whether no further unregistered video may have rows parked."""

    def __init__(self, link: RedisConnection, settings: RecordSettings, metrics: Metrics) -> None:
        self._link = link
        self._metrics = metrics
        self._park_videos, self._park_ttl_s = settings.park_videos, settings.park_ttl_s
        self.parking_full = False

    async def tell(
        self, changes: Sequence[Change], *, parked: Sequence[str] = (), unparked: Sequence[str] = ()
    ) -> None:
        """Tell what changed, and which videos got or no longer have parked rows; a store that fails now is left alone."""
        commands: list[Command] = [
            _entry(changes[first : first + CHANGES_AN_ENTRY]) for first in range(0, len(changes), CHANGES_AN_ENTRY)
        ]
        until_s = int(time.time()) + self._park_ttl_s
        if parked:
            commands.append(["ZADD", keys.PARKED, *(part for video_id in parked for part in (until_s, video_id))])
        if unparked:
            commands.append(["ZREM", keys.PARKED, *unparked])
        if not commands and not self.parking_full:
            return
        commands += [["ZREMRANGEBYSCORE", keys.PARKED, "-inf", int(time.time())], ["ZCARD", keys.PARKED]]
        with suppress(Unavailable):
            parked_videos = (await self._link.pipeline("announce", commands))[-1]
            self.parking_full = parked_videos >= self._park_videos
            self._metrics.parked_videos.set(parked_videos)


def _entry(changes: Sequence[Change]) -> Command:
    return ["XADD", keys.CHANGES, "MAXLEN", "~", ENTRIES_KEPT, "*", "videos", msgspec.json.encode(changes)]


def unlisted(names: Sequence[str | bytes]) -> list[Command]:
    """Commands that take videos out of every list."""
    commands: list[Command] = []
    for start in range(0, len(names), _CHUNK):
        some = names[start : start + _CHUNK]
        commands += [["ZREM", key, *some] for key in (keys.RANK_DUE, *(keys.rank(sort) for sort in keys.SORTS))]
        commands.append(["HDEL", keys.RANK_ROWS, *some])
    return commands
