"""What changed in the store, told to this process: one reader of the capped stream of changes.

An entry's field ``videos`` is a JSON list of [video_id, version]; with version 0 the tombstone of a forgotten video. The stream may
lose entries (it is capped, and a power cut may take its end), so it says what to look at again, never what is true.
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
from service.store.redis.deployment import Server

log = structlog.get_logger(__name__)

_COUNT: Final = 1000
"""Entries in one read, at most."""
_START: Final = "0-0"


class Listener(Protocol):
    """Told in the loop's thread; must not block, nor raise."""

    def changed(self, changes: Sequence[Change]) -> None:
        """These videos have these versions now."""

    def missed(self) -> None:
        """Changes may have been lost: anything may have changed."""


class ChangeSubscriber(Reading):
    """Follows the stream from the moment of the first connection on; after an interruption it goes on where it was."""

    _what = "the stream of changes"

    def __init__(self, server: Server | str, deadline_s: float) -> None:
        super().__init__(server, deadline_s)
        self._listeners: list[Listener] = []
        self._decoder = msgspec.json.Decoder(list[Change])
        self._place: str | None = None

    def on_change(self, listener: Listener) -> None:
        """Call a listener about every change from now on."""
        self._listeners.append(listener)

    async def _run(self) -> None:
        while True:
            try:
                await self._connect()
                await self._find_place()
                while True:
                    self._failures = 0
                    if await self._read() == _COUNT:
                        # Far behind: what comes next may have been cut off already.
                        await self._find_place()
            except (RedisError, OSError, TimeoutError) as error:
                await asyncio.sleep(await self._missed(error))
            except Exception:
                # A fault of a listener must not end what all others live by.
                log.exception("the stream of changes could not be followed")
                for listener in self._listeners:
                    listener.missed()
                await asyncio.sleep(PAUSES_S[-1])

    async def _find_place(self) -> None:
        """Make sure that the next entry is still to come; where it cannot be, say that something was missed."""
        newest = await self._redis.xrevrange(keys.CHANGES, count=1)
        last = newest[0][0].decode() if newest else _START
        if self._place is None:
            self._place = last
            return
        oldest = await self._redis.xrange(keys.CHANGES, count=1)
        if stream_id(last) < stream_id(self._place):
            self._place = last
        elif not oldest or stream_id(oldest[0][0]) <= stream_id(self._place):
            return
        for listener in self._listeners:
            listener.missed()

    async def _read(self) -> int:
        assert self._place is not None
        reply = await self._redis.xread({keys.CHANGES: self._place}, count=_COUNT, block=BLOCK_S * 1000)
        entries: Sequence[Any] = reply[0][1] if reply else ()
        for name, fields in entries:
            self._place = name.decode()
            try:
                changes = self._decoder.decode(fields.get(b"videos", b""))
            except (msgspec.DecodeError, UnicodeError):
                log.warning("an entry of the stream of changes is not ours", id=self._place)
                continue
            for listener in self._listeners:
                listener.changed(changes)
        return len(entries)
