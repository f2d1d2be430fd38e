"""Following what changes in the store: one reader of the capped stream of changes for the whole process.

An entry's field ``videos`` is a JSON list of [video_id, version], or of [tombstone, 0] for a deleted video. The stream may lose
entries (it is capped, and a power failure may lose its end). So an entry says which video to look at again, and never what is in
it.
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
    """Is called in the event loop's thread; must neither block nor raise."""

    def changed(self, changes: Sequence[Change]) -> None:
        """These videos now have these versions."""

    def missed(self) -> None:
        """Entries may have been lost: any video may have changed."""


class ChangeSubscriber(Reading):
    """Follows the stream from the first connection on; after an interruption it continues from its position."""

    _what = "the stream of changes"

    def __init__(self, server: Server | str, deadline_s: float) -> None:
        super().__init__(server, deadline_s)
        self._listeners: list[Listener] = []
        self._decoder = msgspec.json.Decoder(list[Change])
        self._position: str | None = None
        """Id of the last entry that was read."""

    def on_change(self, listener: Listener) -> None:
        """Call a listener about every change from now on."""
        self._listeners.append(listener)

    async def _run(self) -> None:
        while True:
            try:
                await self._connect()
                await self._check_position()
                while True:
                    self._failures = 0
                    if await self._read() == _ENTRIES_PER_READ:
                        # Far behind: the next entries may have been trimmed already.
                        await self._check_position()
            except (RedisError, OSError, TimeoutError) as error:
                await asyncio.sleep(await self._missed(error))
            except Exception:
                # A fault of one listener must not end the stream for the others.
                log.exception("following the stream of changes failed")
                for listener in self._listeners:
                    listener.missed()
                await asyncio.sleep(PAUSES_S[-1])

    async def _check_position(self) -> None:
        """Check that no entry after the position was trimmed; where one may have been, report that changes were missed."""
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
