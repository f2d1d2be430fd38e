"""Removes deleted videos from the Redis streams, whose entries hold ids and rows.

Redis stores the entries of a stream in nodes of up to ``_NODE`` entries. Redis frees the bytes of a deleted entry only when all entries of
the node are deleted. Therefore the entries near a deleted entry are deleted too, and then added again at the stream's end. The stream of
incoming rows is the exception, because its entries must keep their ids. Entries of that stream are deleted once they are acknowledged.
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
"""Time in seconds for which a change stays useful to a reader that is behind."""
_CHUNK: Final = 1000
Fields = dict[bytes, bytes]
Entry = tuple[bytes, Fields]

# Deletes entries, then adds others, even when Redis has reached maxmemory. ARGV holds the number of deleted entries, their ids,
# and then for each added entry the total number of its field names and values, followed by the field names and values.
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
    """Reads every stream once and removes any number of deleted videos. ``deleted_us`` maps each tombstone to the time of the deletion."""

    def __init__(self, redis: RedisConnection, deleted_us: Mapping[str, int]) -> None:
        self._redis = redis
        self._deleted_us = deleted_us
        self._last_ms = max(deleted_us.values()) // 1000

    async def run(self) -> None:
        """Remove all data that concerns a deleted video and is older than its deletion. Keep the other data of each entry.

        An entry of the stream of incoming rows is removed only if all its rows concern deleted videos. Otherwise the whole entry stays,
        because the consumer checks its rows for tombstones.
        """
        await self._changes()
        await self._rows()
        await self._dead()

    def _is_deleted(self, video_id: object, entry_us: int) -> bool:
        return isinstance(video_id, str) and self._deleted_us.get(tombstone(video_id), -1) >= entry_us

    async def _entries(self, key: str) -> list[Entry]:
        """Return all entries up to the newest deletion, and the later entries that share a stream node with these entries."""
        found: list[Entry] = []
        start = "-"
        while True:
            page = _entries((await self._redis.pipeline("sweep", [["XRANGE", key, start, "+", "COUNT", _PAGE]]))[0])
            found += page
            if len(page) < _PAGE or stream_id(page[0][0])[0] > self._last_ms:
                return found
            start = f"({page[-1][0].decode()}"

    async def _changes(self) -> None:
        """Remove deleted videos from the change stream.

        If any entry names a deleted video, all entries are replaced with copies of the recent entries, without deleted videos.
        """
        entries = await self._entries(keys.CHANGES)
        recent_ms = round((time.time() - _RECENT_S) * 1000)
        affected, kept = False, []
        for name, fields in entries:
            time_ms, _ = stream_id(name)
            try:
                changes = msgspec.json.decode(fields.get(b"videos", b""), type=list[tuple[str, int]])
            except (msgspec.MsgspecError, UnicodeError):
                continue
            left = [change for change in changes if not self._is_deleted(change[0], time_ms * 1000)]
            affected |= len(left) < len(changes)
            if left and time_ms >= recent_ms:
                kept.append({b"videos": msgspec.json.encode(left)})
        if affected:
            await self._replace(keys.CHANGES, [name for name, _ in entries], kept)

    async def _rows(self) -> None:
        names = [
            name
            for name, fields in await self._entries(keys.INGEST)
            if (rows := _parsed(fields))
            and all(self._is_deleted(_video_of(row), stream_id(name)[0] * 1000) for row in rows)
        ]
        for start in range(0, len(names), _CHUNK):
            await self._redis.pipeline("sweep", [["XDEL", keys.INGEST, *names[start : start + _CHUNK]]])

    async def _dead(self) -> None:
        entries = await self._entries(keys.INGEST_DEAD)
        rest: dict[int, Fields | None] = {}
        for position, (name, fields) in enumerate(entries):
            rows = _parsed(fields)
            left = [row for row in rows if not self._is_deleted(_video_of(row), stream_id(name)[0] * 1000)]
            if len(left) < len(rows):
                rest[position] = {**fields, b"rows": json.dumps(left).encode()} if left else None
        beside = sorted({near for position in rest for near in range(max(0, position - _NODE), position + _NODE + 1)})
        beside = [position for position in beside if position < len(entries)]
        kept = [it for position in beside if (it := rest.get(position, entries[position][1])) is not None]
        if beside:
            await self._replace(keys.INGEST_DEAD, [entries[position][0] for position in beside], kept)

    async def _replace(self, key: str, names: Sequence[bytes], kept: Sequence[Fields]) -> None:
        added: list[str | bytes | int] = []
        for fields in kept:
            added.append(2 * len(fields))
            for pair in fields.items():
                added += pair
        command: Command = ["EVAL", _REPLACE, 1, key, len(names), *names, *added]
        await self._redis.pipeline("sweep", [command])


def _entries(reply: Sequence[Any]) -> list[Entry]:
    """Return (entry id, fields) pairs from a reply. The fields are lists in RESP2 and maps in RESP3."""
    return [
        (name, fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True)))
        for name, fields in reply
    ]


def _parsed(fields: Fields) -> list[Any]:
    """Return the rows of an entry, or an empty list if the rows cannot be read."""
    one, many = fields.get(b"row"), fields.get(b"rows")
    try:
        value = json.loads(one if one is not None else many or b"[]")
    except (ValueError, RecursionError):
        return []
    rows = [value] if one is not None else value
    return rows if isinstance(rows, list) else []


def _video_of(row: Any) -> object:
    return row.get("video_id") if isinstance(row, dict) else None
