"""The event store: what the service asks of Redis, and nothing about HTTP.

Every change of a video is one call of one Redis function (``store.lua``); a batch for many videos is one pipeline.
Two lists outside a video's hash tag, what changed and what is active, are told afterwards: losing one of their entries
loses no row, because versions decide what is current.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from service import keys
from service.entry import Entry, merged, single
from service.link import Command, Link
from service.metrics import Metrics
from service.problems import Conflict, Unavailable
from service.row import Outcome, Row
from service.settings import Settings
from service.snapshot import Snapshot, parse_snapshot
from service.times import iso
from service.verdicts import rejections

REMEMBERED_VIDEOS: Final = 100_000
CHANGES_KEPT: Final = 100_000
ACTIVE_KEPT: Final = 100_000


@dataclass(frozen=True, slots=True)
class Registration:
    """What to register a video with; ``metadata`` is canonical JSON of the fields besides id and publication time."""

    published_us: int
    metadata: str


@dataclass(frozen=True, slots=True)
class Applied:
    """One video after its batch; ``version`` is None while it is not registered, or when a strict batch was refused."""

    outcome: Outcome
    version: int | None = None
    changed: bool = False
    parked_applied: int = 0
    parked_rejected: int = 0


class Store:
    """The event store over one Redis (or compatible) server."""

    def __init__(self, link: Link, settings: Settings, metrics: Metrics) -> None:
        self._link = link
        self._metrics = metrics
        self._settings = settings
        self._published: OrderedDict[str, int] = OrderedDict()
        self._parking_full = False

    async def ready(self) -> None:
        """Raise Unavailable unless the server answers and has our functions."""
        await self._link.ready()

    async def apply(self, rows: Mapping[str, Sequence[Row]], *, strict: bool = False) -> dict[str, Applied]:
        """Apply each video's rows, or park them where the video is not registered.

        Atomic for a video, not across videos; ``strict``: all rows of a video, or none when one is refused. Raises
        Unavailable when the server does not answer: the outcome is not known then, and sending the same ids again is
        safe.
        """
        results: dict[str, Applied] = {}
        pending, trust_memory = list(rows), True
        while pending:
            batches = {video_id: self._batch(video_id, rows[video_id], trust_memory) for video_id in pending}
            calls = [(video_id, self._packed(*batch, strict=strict)) for video_id, batch in batches.items()]
            replies = await self._link.call("apply", calls)
            for video_id, reply in zip(pending, replies, strict=True):
                if reply[0] != b"stale":
                    results[video_id] = self._applied(video_id, batches[video_id][0], reply)
            pending, trust_memory = [video_id for video_id in pending if video_id not in results], False
        await self._announce(results)
        return results

    async def register(self, video_id: str, registration: Registration, rows: Sequence[Row] = ()) -> Applied:
        """Register a video or replace its metadata, apply what was parked for it, then ``rows``: all of it or nothing.

        Raises Conflict when rows were applied under another ``published_us``; a refused row is in the outcome, and then
        nothing was stored.
        """
        entries = merged(rows, registration.published_us)
        call = (video_id, self._packed(entries, register=registration, strict=True))
        reply = (await self._link.call("apply", [call]))[0]
        if reply[0] == b"conflict":
            raise Conflict(
                "published_at cannot change once rows were applied",
                field="published_at",
                value=iso(registration.published_us),
                allowed=iso(int(reply[1])),
            )
        applied = self._applied(video_id, entries, reply)
        await self._announce({video_id: applied}, registered=video_id)
        return applied

    async def read(self, video_id: str, known: Snapshot | None = None) -> Snapshot | None:
        """The video as it is now, ``known`` itself when that is still current; None when it is not registered."""
        reply = (await self._link.call("read", [(video_id, str(known.version) if known else "")]))[0]
        if not reply:
            return None
        if len(reply) == 1 and known is not None:
            return known
        return parse_snapshot(video_id, reply)

    async def forget(self, video_id: str) -> bool:
        """Delete everything about a video, parked rows included; False when there was nothing."""
        self._published.pop(video_id, None)
        gone = bool((await self._link.call("forget", [(video_id, str(self._settings.dedup_ttl_s))]))[0])
        if gone:
            await self._tell([["ZREM", keys.ACTIVE, video_id], ["ZREM", keys.PARKED, video_id], _change(video_id, 0)])
        return gone

    def _batch(self, video_id: str, rows: Sequence[Row], trust_memory: bool) -> tuple[list[Entry], int | None]:
        published_us = self._published.get(video_id) if trust_memory else None
        return (single(rows), None) if published_us is None else (merged(rows, published_us), published_us)

    def _packed(
        self,
        entries: Sequence[Entry],
        expected_us: int | None = None,
        register: Registration | None = None,
        *,
        strict: bool = False,
    ) -> bytes:
        request: dict[str, Any] = {
            "rows": [entry.packed() for entry in entries],
            "strict": strict,
            "dedup_ttl_s": self._settings.dedup_ttl_s,
            "park_rows": 0 if self._parking_full else self._settings.park_rows,
            "park_ttl_s": self._settings.park_ttl_s,
        }
        # Absent, not nil: the function tests for presence.
        if expected_us is not None:
            request["expected_us"] = expected_us
        if register is not None:
            request["register"] = {"published_us": register.published_us, "metadata": register.metadata}
        return msgspec.msgpack.encode(request)

    def _applied(self, video_id: str, entries: Sequence[Entry], reply: Sequence[Any]) -> Applied:
        if reply[0] == b"parked":
            outcome = _outcome(entries, duplicates=reply[2], refused=reply[3], published_us=None)
            outcome.parked, outcome.accepted = outcome.accepted, 0
            return Applied(outcome)
        if reply[0] == b"refused":
            published_us = int(reply[2])
            return Applied(Outcome(rejections=list(rejections(entries, reply[1], published_us))))
        _, version, changed, published, duplicates, refused, corrected, parked_applied, parked_rejected = reply
        self._published[video_id] = int(published)
        self._published.move_to_end(video_id)
        if len(self._published) > REMEMBERED_VIDEOS:
            self._published.popitem(last=False)
        outcome = _outcome(entries, duplicates=duplicates, refused=refused, published_us=int(published))
        outcome.corrected = corrected
        return Applied(outcome, int(version), bool(changed), parked_applied, parked_rejected)

    async def _announce(self, results: Mapping[str, Applied], registered: str | None = None) -> None:
        now_s = int(time.time())
        commands: list[Command] = []
        for video_id, applied in results.items():
            if applied.outcome.parked:
                commands.append(["ZADD", keys.PARKED, now_s + self._settings.park_ttl_s, video_id])
            elif applied.changed and applied.version is not None:
                commands += [_change(video_id, applied.version), ["ZADD", keys.ACTIVE, now_s, video_id]]
        if registered is not None and results[registered].version is not None:
            commands.append(["ZREM", keys.PARKED, registered])
        if commands or self._parking_full:
            await self._tell(commands)

    async def _tell(self, commands: Sequence[Command]) -> None:
        housekeeping: list[Command] = [
            ["ZREMRANGEBYRANK", keys.ACTIVE, 0, -ACTIVE_KEPT - 1],
            ["ZREMRANGEBYSCORE", keys.PARKED, "-inf", int(time.time())],
            ["ZCARD", keys.PARKED],
        ]
        with suppress(Unavailable):
            parked_videos = (await self._link.pipeline("announce", [*commands, *housekeeping]))[-1]
            self._parking_full = parked_videos >= self._settings.park_videos
            self._metrics.parked_videos.set(parked_videos)


def _change(video_id: str, version: int) -> Command:
    return ["XADD", keys.CHANGES, "MAXLEN", "~", CHANGES_KEPT, "*", "video_id", video_id, "version", version]


def _outcome(
    entries: Sequence[Entry], *, duplicates: Sequence[int], refused: Sequence[Sequence[Any]], published_us: int | None
) -> Outcome:
    outcome = Outcome(rejections=list(rejections(entries, refused, published_us)))
    outcome.duplicate = sum(len(entries[i].rows) for i in duplicates)
    outcome.accepted = sum(len(entry.rows) for entry in entries) - outcome.duplicate - len(outcome.rejections)
    return outcome
