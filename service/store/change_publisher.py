"""Publishes which videos changed, and which videos have parked rows.

A publication is written after the change itself, to keys without the video's Redis hash tag. If a publication is lost, no row is lost.
Readers also compare the versions of videos, so they still find out which data are current.
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
"""A video id and its new version. If the video was deleted: its tombstone, which is a digest of the id, and 0."""

ENTRIES_KEPT: Final = 4096
CHANGES_PER_ENTRY: Final = 256
_MEMBERS_PER_COMMAND: Final = 500
_UNLIST_FURTHER: Final = f"""
for _, metric in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  for _, sort in ipairs({{{", ".join(map(repr, keys.SORTS))}}}) do
    redis.call('ZREM', '{keys.rank("")}' .. sort .. ':' .. metric, unpack(ARGV))
  end
end
return 0
"""
"""Removes videos from the rankings of all further metrics. All their keys are in the cluster slot of KEYS[1]."""


class ChangePublisher:
    """Publishes changes of videos.

    ``parking_full``: whether the limit on unregistered videos with parked rows has been reached.
    """

    def __init__(self, connection: RedisConnection, settings: RecordSettings, metrics: Metrics) -> None:
        self._connection = connection
        self._metrics = metrics
        self._park_videos, self._park_ttl_s = settings.park_videos, settings.park_ttl_s
        self.parking_full = False

    async def publish(
        self, changes: Sequence[Change], *, parked: Sequence[str] = (), unparked: Sequence[str] = ()
    ) -> None:
        """Publish what changed. If the store does not answer, nothing is published and no error is raised.

        Args:
            changes: the videos that changed.
            parked: the videos for which rows were just parked.
            unparked: the videos that no longer have parked rows.
        """
        commands: list[Command] = [
            _entry(changes[first : first + CHANGES_PER_ENTRY]) for first in range(0, len(changes), CHANGES_PER_ENTRY)
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
            parked_videos = (await self._connection.pipeline("announce", commands))[-1]
            self.parking_full = parked_videos >= self._park_videos
            self._metrics.parked_videos.set(parked_videos)


def _entry(changes: Sequence[Change]) -> Command:
    return ["XADD", keys.CHANGES, "MAXLEN", "~", ENTRIES_KEPT, "*", "videos", msgspec.json.encode(changes)]


def unlist_commands(video_ids: Sequence[str | bytes]) -> list[Command]:
    """Return the commands that remove videos from every ranking."""
    commands: list[Command] = []
    for start in range(0, len(video_ids), _MEMBERS_PER_COMMAND):
        some = video_ids[start : start + _MEMBERS_PER_COMMAND]
        commands += [["ZREM", key, *some] for key in (keys.RANK_DUE, *(keys.rank(sort) for sort in keys.SORTS))]
        commands.append(["HDEL", keys.RANK_ROWS, *some])
        commands.append(["EVAL", _UNLIST_FURTHER, 1, keys.RANK_METRICS, *some])
    return commands
