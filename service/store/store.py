"""The event store: all operations of the service on its data in Redis. This module knows nothing about HTTP.

Every change of a video is made by one call of a Lua function (``lua/``), atomically for that video. If the server is not a cluster,
one call can change many videos. After the change, an entry is added to the stream ``m3tr:changes``. The entry has one field,
``videos``: a JSON list of [video_id, version] pairs, or of [tombstone, 0] pairs for deleted videos.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, cast

from redis.exceptions import ResponseError

from model.bank.tombstone import tombstone
from model.engagement.types import ENGAGEMENT_TYPES, REACH, SIGNALS, check_types
from service.fair_turns import Turns
from service.metrics import Metrics
from service.problems import Conflict, NotFound, Unavailable
from service.settings import RecordSettings
from service.store import keys
from service.store.change_publisher import ChangePublisher, unlist_commands
from service.store.commit import GroupCommit, empty_chunk
from service.store.correction import Correction
from service.store.forgotten import Forgotten
from service.store.quarantine import Damaged, Quarantine
from service.store.redis.connection import Command, RedisConnection
from service.store.replies import (
    Applied,
    ApplyReply,
    Changed,
    Corrected,
    Current,
    DamagedReply,
    Failed,
    Lost,
    Parked,
    PublicationConflict,
    Record,
    Unknown,
    decode_correct,
    parse_read,
)
from service.store.row_applier import RowApplier, RowRetention
from service.store.rows.outcome import Outcome
from service.store.rows.row import InputRow
from service.store.rows.row_batch import RowBatch
from service.store.snapshot import Snapshot, parse_snapshot
from service.times import iso

READS_PER_CALL: Final = 32
"""Maximum number of videos that are read in one call of the Lua function ``read``."""


@dataclass(frozen=True, slots=True)
class Registration:
    """The data of a registration. ``metadata`` is canonical JSON of all fields except the id and the publication time."""

    published_us: int
    metadata: str


@dataclass(frozen=True, slots=True)
class AppliedRows:
    """The result of applying rows to one video.

    ``version``: the video's version after the call. None if the video is not registered, or if a strict batch was refused.
    """

    outcome: Outcome
    version: int | None = None
    changed: bool = False
    parked_applied: int = 0
    parked_rejected: int = 0
    created: bool = False
    """Whether the video was not registered before this call."""


class Store:
    """The event store in one deployment of Redis, or of a server that is compatible with Redis.

    ``types``: the engagement types that rows may have.
    """

    def __init__(
        self,
        connection: RedisConnection,
        settings: RecordSettings,
        metrics: Metrics,
        types: Sequence[str] = ENGAGEMENT_TYPES,
        turns: Turns | None = None,
    ) -> None:
        self._connection = connection
        self._settings = settings
        self._publisher = ChangePublisher(connection, settings, metrics)
        self._applier = RowApplier(
            connection,
            RowRetention(settings.dedup_ttl_s, settings.park_rows, settings.park_ttl_s),
            self._publisher,
            turns or Turns(),
        )
        self.forgotten = Forgotten(connection)
        check_types(types)
        self._types = [*types, REACH, SIGNALS]
        self.quarantine = Quarantine(metrics)

    async def ready(self) -> None:
        """Raise Unavailable unless every server accepts writes and has the store's Lua functions."""
        await self._connection.ready()

    async def ingest(self, batches: Sequence[RowBatch], *, park: bool = True) -> list[Outcome | Exception]:
        """Apply the rows of each batch, and park the rows of unregistered videos. Return one outcome per batch.

        All rows of one video are applied together, even if they come from different batches. If applying the rows of one video
        fails, the exception is the outcome of each batch with rows of that video. Other batches are not affected.

        Args:
            batches: the rows.
            park: if False, rows of unregistered videos are refused.

        Raises:
            Unavailable: if the server does not answer. It is then unknown whether rows were stored. Sending rows with the same
                event ids again is safe.
        """
        commit = await self._apply(batches, park=park)
        return [
            outcome if fault is None else _with_counts(fault, outcome, lost)
            for outcome, fault, lost in zip(commit.outcomes, commit.faults, commit.lost, strict=True)
        ]

    async def apply(self, rows: Mapping[str, Sequence[InputRow]], *, strict: bool = False) -> dict[str, AppliedRows]:
        """Apply the rows of each video, as ``ingest`` does. Return the result for each video.

        ``strict``: if one row of a video is refused, none of its rows is applied.
        """
        commit = await self._apply([RowBatch.of(some) for some in rows.values()], strict=strict)
        replies = dict(zip(commit.videos, commit.replies, strict=True))
        return {video_id: _applied_rows(commit, i, replies[video_id]) for i, video_id in enumerate(rows)}

    async def register(self, video_id: str, registration: Registration, rows: Sequence[InputRow] = ()) -> AppliedRows:
        """Register a video or replace its metadata. Then apply its parked rows, and after them ``rows``.

        Either all of this is done, or nothing. If one of ``rows`` is refused, nothing is stored, and the outcome lists the row.

        Raises:
            Conflict: if rows have already been applied with a different ``published_us``.
            DamagedRecord: if the video's record cannot be read.
        """
        register = {"published_us": registration.published_us, "metadata": registration.metadata}
        commit = GroupCommit([RowBatch.of(rows)])
        chunk = next(commit.chunks(len(rows)), None) or empty_chunk(video_id)
        options = {"register": register, "types": self._types, "strict": True}
        replies = (await self._applier.call([chunk], options))[0]
        if isinstance(replies, Unavailable):
            raise replies
        (reply,) = replies
        match reply:
            case DamagedReply():
                raise self.quarantine.note(Damaged(video_id, reply.why)).problem()
            case Failed(message=message):
                raise ResponseError(message)
            case PublicationConflict(published_us=published_us):
                raise Conflict(
                    "published_at cannot change after rows were applied",
                    field="published_at",
                    value=iso(registration.published_us),
                    allowed=iso(published_us),
                )
        if rows:
            commit.record(chunk, replies)
        applied = _applied_rows(commit, 0, reply)
        if applied.version is not None:
            if applied.created:
                await self._note_created(video_id)
            changes = [(video_id, applied.version)] if applied.changed else []
            await self._publisher.publish(changes, unparked=[video_id])
        return applied

    async def read(self, video_id: str, known: Snapshot | None = None) -> Snapshot | None:
        """Read a video. Return None if the video is not registered. Return ``known`` if that snapshot is still current.

        Raises:
            DamagedRecord: if the video's record cannot be read.
        """
        found = (await self.read_many({video_id: known}))[video_id]
        if isinstance(found, Damaged):
            raise found.problem()
        return found

    async def read_many(self, known: Mapping[str, Snapshot | None]) -> dict[str, Snapshot | Damaged | None]:
        """Read several videos in one round trip, as ``read`` does. A damaged record does not affect the other videos.

        Raises:
            Unavailable: if a server does not answer.
        """
        found = await self.read_some(known)
        for snapshot in found.values():
            if isinstance(snapshot, Unavailable):
                raise snapshot
        return cast(dict[str, Snapshot | Damaged | None], found)

    async def read_some(
        self, known: Mapping[str, Snapshot | None]
    ) -> dict[str, Snapshot | Damaged | Unavailable | None]:
        """Read several videos, as ``read_many`` does. A video whose server does not answer gets Unavailable as its value.

        Raises:
            Unavailable: if no server answers.
        """
        video_ids, snapshots = list(known), list(known.values())
        versions = [str(snapshot.version) if snapshot else "" for snapshot in snapshots]
        size = 1 if await self._connection.clustered() else READS_PER_CALL
        parts = [slice(start, start + size) for start in range(0, len(video_ids), size)]
        calls = [(list(map(keys.video_prefix, video_ids[part])), versions[part]) for part in parts]
        replies: list[Any] = []
        for part, reply in zip(parts, await self._connection.call("read", calls, partial=True), strict=True):
            replies += [reply] * len(video_ids[part]) if isinstance(reply, Unavailable) else reply
        return {
            video_id: reply if isinstance(reply, Unavailable) else self._parse(video_id, snapshot, reply)
            for video_id, snapshot, reply in zip(video_ids, snapshots, replies, strict=True)
        }

    def _parse(self, video_id: str, known: Snapshot | None, reply: Sequence[Any]) -> Snapshot | Damaged | None:
        match parse_read(reply):
            case Record() as record:
                snapshot = parse_snapshot(video_id, record)
                return self.quarantine.note(snapshot) if isinstance(snapshot, Damaged) else snapshot
            case Current():
                return known
            case DamagedReply(why=why):
                return self.quarantine.note(Damaged(video_id, why))
        return None

    async def forget(self, video_id: str, *, idle_since_us: int | None = None) -> bool:
        """Delete everything about a video, including its parked rows. Return False if there was nothing to delete.

        With ``idle_since_us`` (us), the video is only deleted if its registration and its newest row are older than that time.
        If the registration or the newest row is not older, nothing is deleted, and False is returned.
        """
        idle = "" if idle_since_us is None else str(idle_since_us)
        calls = [([keys.video_prefix(video_id)], [str(self._settings.dedup_ttl_s), idle, *self._types])]
        # Without `idle`, the rankings are cleaned even if the record is gone, because an earlier call may have failed after its deletion.
        if idle and not (await self._connection.call("forget", calls))[0]:
            return False
        await self.unlist(video_id)
        deleted = bool(idle or (await self._connection.call("forget", calls))[0])
        self.quarantine.forget(video_id)
        if deleted:
            # The tombstone is published instead of the id, because the id must not remain in the stream.
            await self._publisher.publish([(tombstone(video_id), 0)])
        return deleted

    async def unlist(self, video_id: str) -> None:
        """Remove a deleted video from all keys that hold data about many videos."""
        self._applier.forget(video_id)
        # Rankings learn about changes from a stream that may lose entries. A deletion must not depend on that stream.
        banks = (await self._connection.pipeline("unlist", [["ZRANGE", keys.MATURING, 0, -1]]))[0]
        commands: list[Command] = [["ZREM", key, video_id] for key in (keys.PARKED, keys.RETENTION, *banks)]
        await self._connection.pipeline("unlist", unlist_commands([video_id]) + commands)

    async def correct(self, video_id: str, correction: Correction) -> Corrected:
        """Lower a count that was too high. The correction is stored either completely or not at all.

        Raises:
            NotFound: if the video is not registered.
            DamagedRecord: if the video's record cannot be read.
            Conflict: if the count is not the one that the correction replaces, or if too little was counted in the correction's
                period.
        """
        calls = [([keys.video_prefix(video_id)], [correction.packed()])]
        reply = decode_correct((await self._connection.call("correct", calls))[0])
        match reply:
            case Corrected():
                await self._publisher.publish([(video_id, reply.version)])
                return reply
            case Unknown():
                raise NotFound("this video is not registered", field="video_id", value=video_id)
            case DamagedReply():
                raise self.quarantine.note(Damaged(video_id, reply.why)).problem()
            case Failed(message=message):
                raise ResponseError(message)
        correction.raise_conflict(reply)

    async def _note_created(self, video_id: str) -> None:
        """Schedule the retention check for a new video. If the video was deleted before, also schedule its admission to banks."""
        self.quarantine.forget(video_id)
        with suppress(Unavailable):
            if days := self._settings.retention_days:
                due_s = int(time.time()) + days * 86_400
                await self._connection.pipeline("register", [["ZADD", keys.RETENTION, "NX", due_s, video_id]])
            if await self.forgotten.lift(video_id):
                banks = (await self._connection.pipeline("register", [["ZRANGE", keys.MATURING, 0, -1]]))[0]
                await self._connection.pipeline("register", [["ZADD", bank, "NX", 0, video_id] for bank in banks])

    async def _apply(self, batches: Sequence[RowBatch], *, strict: bool = False, park: bool = True) -> GroupCommit:
        commit = await self._applier.apply(batches, strict=strict, park=park)
        changes, parked = [], []
        for video_id, reply in zip(commit.videos, commit.replies, strict=True):
            match reply:
                case Changed():
                    changes.append((video_id, reply.version))
                case Parked() if reply.kept:
                    parked.append(video_id)
                case DamagedReply():
                    self.quarantine.note(Damaged(video_id, reply.why))
        await self._publisher.publish(changes, parked=parked)
        return commit


def _with_counts(fault: Exception, outcome: Outcome, lost: int) -> Exception:
    """Return a copy of an Unavailable with the batch's counts. ``lost`` is the number of rows whose outcome is unknown.

    Any other exception is returned unchanged.
    """
    if not isinstance(fault, Unavailable):
        return fault
    stored = {name: getattr(outcome, name) for name in ("accepted", "duplicate", "parked", "corrected")}
    return fault.copy(**stored, unknown=lost)


def _applied_rows(commit: GroupCommit, batch: int, reply: ApplyReply | Lost) -> AppliedRows:
    fault = commit.faults[batch]
    if fault is not None:
        raise fault
    outcome = commit.outcomes[batch]
    if not isinstance(reply, Applied):
        return AppliedRows(outcome)
    return AppliedRows(
        outcome,
        reply.version,
        changed=isinstance(reply, Changed),
        parked_applied=reply.parked_applied,
        parked_rejected=reply.parked_rejected,
        created=reply.created,
    )
