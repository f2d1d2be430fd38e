"""A forecast that is watched, and the place of one client at it.

A place holds one event; a client too slow for it gets the next newer one, and nothing queues up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from service.problems import NotFound, Unavailable

HEARTBEAT_S: Final = 15
"""Seconds of silence after which a client is sent a comment, so that it and every proxy know the line is alive."""
_HEARTBEAT: Final = b":\n\n"
_RETRY_S: Final = 1.0


def end_event(reason: str) -> bytes:
    """The last event of a stream."""
    return b'event: end\ndata: {"reason":"%s"}\n\n' % reason.encode()


class Subscription:
    """One client's place at a topic."""

    def __init__(self) -> None:
        self.leave: Callable[[], None] = lambda: None
        self._latest: bytes | None = None
        self._ended = False
        self._last = b""
        self._news = asyncio.Event()

    def offer(self, event: bytes) -> None:
        """Put an event into the slot, in place of one that was not taken yet."""
        self._latest = event
        self._news.set()

    def end(self, last: bytes = b"") -> None:
        """Nothing comes after what is in the slot, but ``last``."""
        if not self._ended:
            self._ended, self._last = True, last
            self._news.set()

    async def events(self) -> AsyncIterator[bytes]:
        """What to send, heartbeats included."""
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._news.wait()
            except TimeoutError:
                yield _HEARTBEAT
                continue
            self._news.clear()
            event, self._latest = self._latest, None
            if event is not None:
                yield event
            if self._ended and self._latest is None:
                if self._last:
                    yield self._last
                return


class Topic:
    """A forecast that somebody watches; ``task`` runs it."""

    task: asyncio.Task[None]

    def __init__(
        self, make: Callable[[], Awaitable[tuple[int, bytes]]], interval_s: Callable[[], float], refresh_s: float
    ) -> None:
        self.subscriptions: set[Subscription] = set()
        self.first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._make, self._interval_s, self._refresh_s = make, interval_s, refresh_s
        self._version = -1
        self._event = b""
        self._changed = asyncio.Event()

    def join(self, subscription: Subscription) -> None:
        """Send to this one as well, first of all what the others have."""
        self.subscriptions.add(subscription)
        if self._event:
            subscription.offer(self._event)

    def changed(self, version: int | None = None) -> None:
        """The video has this version now (0: forgotten), or may have any."""
        if not version or version > self._version:
            self._changed.set()

    async def run(self) -> str:
        """Make events until the video is gone; the reason for the end. Raises Problem when there is no first event."""
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            began = loop.time()
            refresh_s = self._refresh_s
            try:
                self._version, self._event = await self._make()
            except NotFound:
                if not self._event:
                    raise
                return "deleted"
            except Unavailable:
                if not self._event:
                    raise
                refresh_s = _RETRY_S
            else:
                for subscription in self.subscriptions:
                    subscription.offer(self._event)
                if not self.first.done():
                    self.first.set_result(None)
            try:
                async with asyncio.timeout(refresh_s):
                    await self._changed.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(began + self._interval_s() - loop.time())
