"""Reads the stream of changes in the store. One reader serves the whole service process.

An entry's field ``videos`` is a JSON list of [video_id, version] pairs, or of [tombstone, 0] pairs for deleted videos. The stream
may lose entries, because it has a maximum length, and because a power failure may lose the newest entries. Therefore an entry only names
the videos that must be read again. It does not contain the data of these videos.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, Protocol

import msgspec
import structlog
from redis.exceptions import RedisError

from service.store import keys
from service.store.change_publisher import Change
from service.store.redis.blocking_reads import BLOCK_S, PAUSES_S, Reading, stream_id
from service.store.redis.server import Server

log = structlog.get_logger(__name__)

_ENTRIES_PER_READ: Final = 1000
_START: Final = "0-0"


class Listener(Protocol):
    """An object that is notified of changes. Its methods are called in the event loop's thread, and must neither block nor raise."""

    def changed(self, changes: Sequence[Change]) -> None:
        """Handle the changes. Each is a video id and its new version, or the tombstone of a deleted video and 0."""

    def missed(self) -> None:
        """Handle a possible loss of entries. Any video may have changed."""


class ChangeSubscriber(Reading):
    """Follows the stream of changes. Reading starts with the entries that are added after the first connection.

    After an interruption, it continues after the last entry that it read.
    """

    _what = "the stream of changes"

    def __init__(self, server: Server | str, deadline_s: float) -> None:
        super().__init__(server, deadline_s)
        self._listeners: list[Listener] = []
        self._decoder = msgspec.json.Decoder(list[Change])
        self._position: str | None = None
        """Id of the last entry that was read. None before the first connection."""

    def on_change(self, listener: Listener) -> None:
        """Notify the listener of every change from now on."""
        self._listeners.append(listener)

    async def _run(self) -> None:
        while True:
            try:
                await self._connect()
                await self._check_position()
                while True:
                    self._failures = 0
                    if await self._read() == _ENTRIES_PER_READ:
                        # After a full read, many entries may still be unread, so the next entries may already have been trimmed.
                        await self._check_position()
            except (RedisError, OSError, TimeoutError) as error:
                await asyncio.sleep(await self._missed(error))
            except Exception:
                # An error in one listener must not end the stream for the other listeners.
                log.exception("reading the stream of changes failed")
                for listener in self._listeners:
                    listener.missed()
                await asyncio.sleep(PAUSES_S[-1])

    async def _check_position(self) -> None:
        """Check that no unread entry was trimmed. If one may have been trimmed, tell the listeners that changes were missed."""
        newest = await self._redis.xrevrange(keys.CHANGES, count=1)
        last = newest[0][0].decode() if newest else _START
        if self._position is None:
            self._position = last
            return
        oldest = await self._redis.xrange(keys.CHANGES, count=1)
        if stream_id(last) < stream_id(self._position):
            self._position = last
        elif not oldest or stream_id(oldest[0][0]) <= stream_id(self._position):
            return
        for listener in self._listeners:
            listener.missed()

    async def _read(self) -> int:
        assert self._position is not None
        reply = await self._redis.xread({keys.CHANGES: self._position}, count=_ENTRIES_PER_READ, block=BLOCK_S * 1000)
        entries: Sequence[Any] = reply[0][1] if reply else ()
        for name, fields in entries:
            self._position = name.decode()
            try:
                changes = self._decoder.decode(fields.get(b"videos", b""))
            except (msgspec.DecodeError, UnicodeError):
                log.warning("skipped an unreadable entry of the stream of changes", id=self._position)
                continue
            for listener in self._listeners:
                listener.changed(changes)
        return len(entries)
