"""The event store: what the service asks of Redis, and nothing about HTTP.

Every change of a video is made by one Redis function (``store.lua``), atomically for that video; a call takes many videos
where the server is no cluster. ``m3tr:changes`` is told afterwards: each entry of that stream has one field ``videos``, a
JSON list of [video_id, version], or [tombstone, 0] for one that was deleted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Final, cast

import msgspec
from redis.exceptions import ResponseError

from model.bank.tombstone import tombstone
from model.engagement.types import ENGAGEMENT_TYPES, REACH, check_types
from service.metrics import Metrics
from service.problems import Conflict, NotFound, Unavailable
from service.settings import RecordSettings
from service.store import keys
from service.store.change_publisher import ChangePublisher, unlisted
from service.store.commit import CommitChunk, GroupCommit, no_rows
from service.store.correction import Corrected, Correction
from service.store.forgotten import Forgotten
from service.store.quarantine import Damaged, Quarantine
from service.store.redis.connection import Command, RedisConnection
from service.store.row import Outcome, Row
from service.store.row_batch import RowBatch
from service.store.snapshot import Snapshot, parse_snapshot
from service.times import iso
from service.turns import ROWS, Turns

REMEMBERED_VIDEOS: Final = 250_000
"""Videos whose publication time is remembered, to merge rows by."""
ROWS_A_CALL: Final = 500
"""Rows in one call of the function, about: two to four milliseconds of the server, which answers nobody else meanwhile."""
VIDEOS_A_CALL: Final = 64
"""Videos in one call of the function, at most, where several clients are there; and then calls are sent one by one, as the server
answers nobody else between those that are sent together."""
READS_A_CALL: Final = 32
"""Videos read in one call of the function."""


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
    created: bool = False
    """Whether the video was not registered before."""


class Store:
    """The event store over one Redis (or compatible) server; ``types`` are the engagement types that rows may have."""

    def __init__(
        self,
        link: RedisConnection,
        settings: RecordSettings,
        metrics: Metrics,
        types: Sequence[str] = ENGAGEMENT_TYPES,
        turns: Turns | None = None,
    ) -> None:
        self._link = link
        self._settings = settings
        self._turns = turns or Turns()
        self._news = ChangePublisher(link, settings, metrics)
        self.forgotten = Forgotten(link)
        self._published: dict[str, int] = {}
        check_types(types)
        self._types = [*types, REACH]
        self.quarantine = Quarantine(metrics)

    async def ready(self) -> None:
        """Raise Unavailable unless the server answers and has our functions."""
        await self._link.ready()

    async def ingest(self, batches: Sequence[RowBatch], *, park: bool = True) -> list[Outcome | Exception]:
        """Apply each batch's rows, or park them where a video is not registered; what became of each batch.

        ``park`` False: refuse them there.

        Rows of one video are applied together, whatever batch they came in. A fault of one video is the outcome of the
        batches with rows of it, and of no other. Raises Unavailable when the server does not answer: the outcome is not
        known then, and sending the same ids again is safe.
        """
        done = await self._apply(batches, park=park)
        return [
            outcome if fault is None else _told(fault, outcome, lost)
            for outcome, fault, lost in zip(done.outcomes, done.faults, done.lost, strict=True)
        ]

    async def apply(self, rows: Mapping[str, Sequence[Row]], *, strict: bool = False) -> dict[str, Applied]:
        """Apply each video's rows like ``ingest``; ``strict``: all rows of a video, or none when one is refused."""
        done = await self._apply([RowBatch.of(given) for given in rows.values()], strict=strict)
        answers = dict(zip(done.videos, done.answers, strict=True))
        return {video_id: _applied(done, i, answers[video_id]) for i, video_id in enumerate(rows)}

    async def register(self, video_id: str, registration: Registration, rows: Sequence[Row] = ()) -> Applied:
        """Register a video or replace its metadata, apply what was parked for it, then ``rows``: all of it or nothing.

        Raises Conflict when rows were applied under another ``published_us``; a refused row is in the outcome, and then
        nothing was stored.
        """
        register = {"published_us": registration.published_us, "metadata": registration.metadata}
        done = GroupCommit([RowBatch.of(rows)])
        share = next(done.shares(len(rows)), None) or no_rows(video_id)
        answer = (await self._call([share], {"register": register, "types": self._types, "strict": True}))[0][0]
        if answer[0] == "damaged":
            raise self.quarantine.note(_damaged(video_id, answer)).problem()
        if answer[0] == "error":
            raise ResponseError(answer[1])
        if answer[0] == "conflict":
            raise Conflict(
                "published_at cannot change once rows were applied",
                field="published_at",
                value=iso(registration.published_us),
                allowed=iso(answer[1]),
            )
        if rows:
            done.settle(share, [answer])
        applied = _applied(done, 0, answer)
        if applied.version is not None:
            if applied.created:
                await self._begin_anew(video_id)
            changes = [(video_id, applied.version)] if applied.changed else []
            await self._news.tell(changes, unparked=[video_id])
        return applied

    async def read(self, video_id: str, known: Snapshot | None = None) -> Snapshot | None:
        """The video as it is now, ``known`` itself when that is still current; None when it is not registered.

        Raises DamagedRecord where it cannot be read.
        """
        found = (await self.read_many({video_id: known}))[video_id]
        if isinstance(found, Damaged):
            raise found.problem()
        return found

    async def read_many(self, known: Mapping[str, Snapshot | None]) -> dict[str, Snapshot | Damaged | None]:
        """``read`` of several videos in one round trip; one that cannot be read disturbs no other.

        Raises Unavailable when the server of any does not answer.
        """
        found = await self.read_some(known)
        for snapshot in found.values():
            if isinstance(snapshot, Unavailable):
                raise snapshot
        return cast(dict[str, Snapshot | Damaged | None], found)

    async def read_some(
        self, known: Mapping[str, Snapshot | None]
    ) -> dict[str, Snapshot | Damaged | Unavailable | None]:
        """``read_many``, with Unavailable in the place of a video whose server does not answer; raised when none does."""
        asked = [(video_id, str(held.version) if held else "") for video_id, held in known.items()]
        size = 1 if await self._link.clustered() else READS_A_CALL
        parts = [asked[start : start + size] for start in range(0, len(asked), size)]
        calls = [([v for v, _ in part], [held for _, held in part]) for part in parts]
        told = await self._link.call("read", calls, partial=True)
        replies: list[Any] = []
        for part, reply in zip(parts, told, strict=True):
            replies += [reply] * len(part) if isinstance(reply, Unavailable) else reply
        found: dict[str, Snapshot | Damaged | Unavailable | None] = {}
        for (video_id, held), reply in zip(known.items(), replies, strict=True):
            if isinstance(reply, Unavailable):
                found[video_id] = reply
                continue
            one = held if len(reply) == 1 else parse_snapshot(video_id, reply) if reply else None
            found[video_id] = self.quarantine.note(one) if isinstance(one, Damaged) else one
        return found

    async def forget(self, video_id: str, *, idle_since_us: int | None = None) -> bool:
        """Delete everything about a video, parked rows included; False when there was nothing.

        ``idle_since_us``: only if it was registered, and had its newest row, before that time (us); otherwise False.
        """
        idle = "" if idle_since_us is None else str(idle_since_us)
        calls = [([video_id], [str(self._settings.dedup_ttl_s), idle, *self._types])]
        # What is deleted for good leaves the lists also where the store forgot it before and could not say so.
        if idle and not (await self._link.call("forget", calls))[0]:
            return False
        await self.unlist(video_id)
        gone = bool(idle or (await self._link.call("forget", calls))[0])
        self.quarantine.forget(video_id)
        if gone:
            # Not the id, which is to be forgotten.
            await self._news.tell([(tombstone(video_id), 0)])
        return gone

    async def unlist(self, video_id: str) -> None:
        """Take a video that ends, or has ended, out of all that is kept about videos together."""
        self._published.pop(video_id, None)
        # Lists learn of changes from a stream, which may lose one; what is deleted must not depend on it.
        banks = (await self._link.pipeline("unlist", [["ZRANGE", keys.MATURING, 0, -1]]))[0]
        commands: list[Command] = [["ZREM", key, video_id] for key in (keys.PARKED, keys.RETENTION, *banks)]
        await self._link.pipeline("unlist", unlisted([video_id]) + commands)

    async def correct(self, video_id: str, correction: Correction) -> Corrected:
        """Lower a count that was wrong; all of it or nothing.

        Raises NotFound, DamagedRecord, and Conflict where the count is not what the correction replaces, or is not made of
        what it says.
        """
        given = {**asdict(correction), "from_us": -1 if correction.from_us is None else correction.from_us}
        told = (await self._link.call("correct", [([video_id], [msgspec.msgpack.encode(given)])]))[0]
        match _decode(told):
            case ["corrected", version, total]:
                await self._news.tell([(video_id, int(version))])
                return Corrected(int(version), int(total))
            case ["unknown"]:
                raise NotFound("this video is not registered", field="video_id", value=video_id)
            case ["conflict", total]:
                raise Conflict(
                    f"the count of {correction.type} is {total:.0f}, and not what is to be replaced",
                    field="replaces",
                    value=str(correction.replaces),
                    allowed=f"{total:.0f}",
                )
            case ["missing", much]:
                raise Conflict(
                    f"{much:.0f} of what is to be taken from {correction.type} was not counted from then on",
                    field="from",
                    value="" if correction.from_us is None else iso(correction.from_us),
                    allowed="a time before the readings that were wrong, or nothing",
                )
            case ["damaged", *_] as answer:
                raise self.quarantine.note(_damaged(video_id, answer)).problem()
            case answer:
                raise ResponseError(answer[1])

    async def _begin_anew(self, video_id: str) -> None:
        """A video that is new: what is kept of others, and of one that was deleted before."""
        self.quarantine.forget(video_id)
        with suppress(Unavailable):
            if days := self._settings.retention_days:
                due_s = int(time.time()) + days * 86_400
                await self._link.pipeline("register", [["ZADD", keys.RETENTION, "NX", due_s, video_id]])
            if await self.forgotten.lift(video_id):
                banks = (await self._link.pipeline("register", [["ZRANGE", keys.MATURING, 0, -1]]))[0]
                await self._link.pipeline("register", [["ZADD", bank, "NX", 0, video_id] for bank in banks])

    async def _apply(self, batches: Sequence[RowBatch], *, strict: bool = False, park: bool = True) -> GroupCommit:
        done = GroupCommit(batches, self._published)
        await self._send(done, strict=strict, park=park)
        if done.stale:
            again = GroupCommit(done.again())
            await self._send(again, strict=strict, park=park)
            done.add(again)
        changes, parked = [], []
        for video_id, answer in zip(done.videos, done.answers, strict=True):
            if answer[0] == 1:
                changes.append((video_id, answer[1]))
            elif answer[0] == "parked" and answer[1]:
                parked.append(video_id)
            elif answer[0] == "damaged":
                self.quarantine.note(_damaged(video_id, answer))
        await self._news.tell(changes, parked=parked)
        return done

    async def _send(self, done: GroupCommit, *, strict: bool, park: bool) -> None:
        """Send a round's shares; where they go one by one and the store is lost on the way, the rest of them is as well."""
        clustered = await self._link.clustered()
        one_by_one = self._turns.crowded and not clustered
        shares = done.shares(1 if clustered else ROWS_A_CALL, VIDEOS_A_CALL if one_by_one else None)
        begun = False
        while some := list(islice(shares, 1 if one_by_one else None)):
            if begun:
                await self._turns.take(ROWS)
            try:
                told = await self._call(some, {"strict": strict}, park=park)
            except Unavailable as problem:
                if not begun:
                    raise
                for share in (*some, *shares):
                    done.lose(share, problem)
                return
            for share, answers in zip(some, told, strict=True):
                if begun:
                    # A share takes some tenths of a millisecond.
                    await self._turns.take(ROWS)
                begun = True
                if isinstance(answers, Unavailable):
                    done.lose(share, answers)
                else:
                    done.settle(share, answers)

    async def _call(self, shares: Sequence[CommitChunk], options: Mapping[str, Any], *, park: bool = True) -> list[Any]:
        given = {
            **options,
            "dedup_ttl_s": self._settings.dedup_ttl_s,
            "park_rows": self._settings.park_rows if park and not self._news.parking_full else 0,
            "park_ttl_s": self._settings.park_ttl_s,
        }
        calls = [(s.videos, [msgspec.msgpack.encode({**given, **s.head}), *s.columns]) for s in shares]
        replies = await self._link.call("apply", calls, partial=True)
        answers = [reply if isinstance(reply, Unavailable) else _decode(reply) for reply in replies]
        for share, told in zip(shares, answers, strict=True):
            if isinstance(told, Unavailable):
                continue
            for video_id, answer in zip(share.videos, told, strict=True):
                if answer[0] in (0, 1):
                    self._published[video_id] = answer[2]
        while len(self._published) > REMEMBERED_VIDEOS:
            del self._published[next(iter(self._published))]
        return answers


def _damaged(video_id: str, answer: Sequence[Any]) -> Damaged:
    return Damaged(video_id, str(answer[1]).removeprefix("damaged: "))


_decode = msgspec.msgpack.Decoder(list[Any]).decode


def _told(fault: Exception, outcome: Outcome, lost: int) -> Exception:
    """A fault that says what became of the batch's other rows, and of how many that is not known."""
    if not isinstance(fault, Unavailable):
        return fault
    stored = {name: getattr(outcome, name) for name in ("accepted", "duplicate", "parked", "corrected")}
    return fault.copy(**stored, unknown=lost)


def _applied(done: GroupCommit, batch: int, answer: Sequence[Any]) -> Applied:
    fault = done.faults[batch]
    if fault is not None:
        raise fault
    outcome = done.outcomes[batch]
    if answer[0] not in (0, 1):
        return Applied(outcome)
    parked_applied, parked_rejected, created = answer[6:] or (0, 0, 0)
    return Applied(outcome, answer[1], bool(answer[0]), parked_applied, parked_rejected, bool(created))
