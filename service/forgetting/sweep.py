"""Takes deleted videos out of the streams, whose entries hold ids and rows.

A deleted entry of a stream keeps its bytes until the last one of its node (up to ``_NODE`` entries) is deleted. So entries beside
one that goes are written again at the stream's end, and deleted as well. The stream of rows is left as it is but for the
deletion: its entries must keep their ids, and go when they are acknowledged.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from model.bank.tombstone import tombstone
from service.store import keys
from service.store.redis.blocking_reads import stream_id
from service.store.redis.connection import Command, RedisConnection

_PAGE: Final = 500
_NODE: Final = 100
_RECENT_S: Final = 10
"""Seconds for which a change is of use to a reader that is behind."""
_CHUNK: Final = 1000
Fields = dict[bytes, bytes]
Entry = tuple[bytes, Fields]

# Deletes entries, then adds others; at maxmemory too. ARGV: a number of names, these; then of each entry a number and so many
# fields and values.
_REPLACE: Final = """#!lua flags=allow-oom
local last = 1 + tonumber(ARGV[1])
for first = 2, last, 1000 do redis.call('XDEL', KEYS[1], unpack(ARGV, first, math.min(first + 999, last))) end
while last < #ARGV do
  local n = tonumber(ARGV[last + 1])
  redis.call('XADD', KEYS[1], '*', unpack(ARGV, last + 2, last + 1 + n))
  last = last + 1 + n
end
"""


class Sweep:
    """Looks through every stream once, however many videos it is about."""

    def __init__(self, redis: RedisConnection, deleted_us: Mapping[str, int]) -> None:
        self._redis = redis
        self._deleted_us = deleted_us
        self._last_ms = max(deleted_us.values()) // 1000

    async def run(self) -> None:
        """Remove what is about a deleted video and older than its deletion; what entries say of others is kept.

        But rows that nobody has taken yet stay where they share an entry with rows of other videos: who takes them asks.
        """
        await self._changes()
        await self._rows()
        await self._dead()

    def _gone(self, video_id: object, entry_us: int) -> bool:
        return isinstance(video_id, str) and self._deleted_us.get(tombstone(video_id), -1) >= entry_us

    async def _entries(self, key: str) -> list[Entry]:
        """All entries up to the newest deletion, and the others of their node."""
        found: list[Entry] = []
        place = "-"
        while True:
            page = _entries((await self._redis.pipeline("sweep", [["XRANGE", key, place, "+", "COUNT", _PAGE]]))[0])
            found += page
            if len(page) < _PAGE or stream_id(page[0][0])[0] > self._last_ms:
                return found
            place = f"({page[-1][0].decode()}"

    async def _changes(self) -> None:
        """Begin the stream anew with what is recent, where any entry is concerned."""
        entries = await self._entries(keys.CHANGES)
        recent_ms = round((time.time() - _RECENT_S) * 1000)
        concerned, kept = False, []
        for name, fields in entries:
            time_ms, _ = stream_id(name)
            try:
                changes = msgspec.json.decode(fields.get(b"videos", b""), type=list[tuple[str, int]])
            except (msgspec.MsgspecError, UnicodeError):
                continue
            left = [change for change in changes if not self._gone(change[0], time_ms * 1000)]
            concerned |= len(left) < len(changes)
            if left and time_ms >= recent_ms:
                kept.append({b"videos": msgspec.json.encode(left)})
        if concerned:
            await self._replace(keys.CHANGES, [name for name, _ in entries], kept)

    async def _rows(self) -> None:
        names = [
            name
            for name, fields in await self._entries(keys.INGEST)
            if (rows := _parsed(fields)) and all(self._gone(_video_of(row), stream_id(name)[0] * 1000) for row in rows)
        ]
        for start in range(0, len(names), _CHUNK):
            await self._redis.pipeline("sweep", [["XDEL", keys.INGEST, *names[start : start + _CHUNK]]])

    async def _dead(self) -> None:
        entries = await self._entries(keys.INGEST_DEAD)
        rest: dict[int, Fields | None] = {}
        for place, (name, fields) in enumerate(entries):
            rows = _parsed(fields)
            left = [row for row in rows if not self._gone(_video_of(row), stream_id(name)[0] * 1000)]
            if len(left) < len(rows):
                rest[place] = {**fields, b"rows": json.dumps(left).encode()} if left else None
        beside = sorted({near for place in rest for near in range(max(0, place - _NODE), place + _NODE + 1)})
        beside = [place for place in beside if place < len(entries)]
        kept = [it for place in beside if (it := rest.get(place, entries[place][1])) is not None]
        if beside:
            await self._replace(keys.INGEST_DEAD, [entries[place][0] for place in beside], kept)

    async def _replace(self, key: str, names: Sequence[bytes], kept: Sequence[Fields]) -> None:
        added: list[str | bytes | int] = []
        for fields in kept:
            added.append(2 * len(fields))
            for pair in fields.items():
                added += pair
        command: Command = ["EVAL", _REPLACE, 1, key, len(names), *names, *added]
        await self._redis.pipeline("sweep", [command])


def _entries(reply: Sequence[Any]) -> list[Entry]:
    """(name, fields) of a reply, whichever form the protocol version gives them."""
    return [
        (name, fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True)))
        for name, fields in reply
    ]


def _parsed(fields: Fields) -> list[Any]:
    """The rows of an entry; none where they cannot be read."""
    one, many = fields.get(b"row"), fields.get(b"rows")
    try:
        value = json.loads(one if one is not None else many or b"[]")
    except (ValueError, RecursionError):
        return []
    rows = [value] if one is not None else value
    return rows if isinstance(rows, list) else []


def _video_of(row: Any) -> object:
    return row.get("video_id") if isinstance(row, dict) else None
