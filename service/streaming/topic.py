"""Defines a topic, which is a forecast with subscribers, and a subscription of one client to a topic.

A subscription has a slot for one event. A newer event replaces an unsent one, so nothing queues up for a slow client.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from service.problems import NotFound, Unavailable

HEARTBEAT_S: Final = 15
"""Seconds without an event after which a comment is sent. The comment shows the client and proxies that the connection is alive."""
_HEARTBEAT: Final = b":\n\n"
_RETRY_S: Final = 1.0


def end_event(reason: str) -> bytes:
    """Return the last event of a stream."""
    return b'event: end\ndata: {"reason":"%s"}\n\n' % reason.encode()


class Subscription:
    """One client's subscription to a topic."""

    def __init__(self) -> None:
        self.leave: Callable[[], None] = lambda: None
        self._latest: bytes | None = None
        self._ended = False
        self._last = b""
        self._wake = asyncio.Event()

    def offer(self, event: bytes) -> None:
        """Put an event into the slot. The new event replaces an event that was not sent yet."""
        self._latest = event
        self._wake.set()

    def end(self, last: bytes = b"") -> None:
        """End the subscription. The event in the slot, if any, is still sent, followed by ``last``."""
        if not self._ended:
            self._ended, self._last = True, last
            self._wake.set()

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the bytes to send, including heartbeats."""
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._wake.wait()
            except TimeoutError:
                yield _HEARTBEAT
                continue
            self._wake.clear()
            event, self._latest = self._latest, None
            if event is not None:
                yield event
            if self._ended and self._latest is None:
                if self._last:
                    yield self._last
                return


class Topic:
    """A forecast with subscribers. ``task`` runs it.

    ``make`` returns the video's version and the event that holds the forecast for that version.
    """

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
        """Add a subscription. If the topic has an event, the subscription gets the newest one at once."""
        self.subscriptions.add(subscription)
        if self._event:
            subscription.offer(self._event)

    def changed(self, version: int | None = None) -> None:
        """Record that the video changed to this version. 0 means that it was deleted. None means that the version is unknown."""
        if not version or version > self._version:
            self._changed.set()

    async def run(self) -> str:
        """Make events until the video is deleted. Return the reason for the end.

        Raises a Problem if the first event fails.
        """
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
