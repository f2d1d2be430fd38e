"""Keeps the active model version in the event store. The version survives a restart, and every replica adopts it within seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from service.background import BackgroundTask
from service.problems import Unavailable
from service.store import keys
from service.store.redis.connection import RedisConnection

log = structlog.get_logger(__name__)

EVERY_S: Final = 2.0
"""Seconds between two polls of the stored version."""
AGAIN_S: Final = 60.0
"""Seconds until a version that could not be activated is tried again."""


class ActiveVersion(BackgroundTask):
    """Reads, writes and polls the stored version. If ``enabled`` is False, nothing is stored or polled.

    Methods raise Unavailable if the event store does not answer.
    """

    def __init__(self, redis: RedisConnection, *, enabled: bool) -> None:
        self.enabled = enabled
        self._redis = redis
        self._follow: Callable[[], Awaitable[None]] = _ignore
        self._refused, self._again_s = "", 0.0

    def on_poll(self, follow: Callable[[], Awaitable[None]]) -> None:
        """Call ``follow`` every ``EVERY_S`` seconds."""
        self._follow = follow

    async def write(self, version: str) -> None:
        """Store the active version for this service and all replicas that share its store."""
        if self.enabled:
            await self._redis.pipeline("models", [["SET", keys.ACTIVE_MODEL, version]])

    async def read(self) -> str | None:
        """Return the stored version. Return None if no version is stored, or if it was refused less than ``AGAIN_S`` seconds ago."""
        found = (await self._redis.pipeline("models", [["GET", keys.ACTIVE_MODEL]]))[0] if self.enabled else None
        if found is None or (found.decode() == self._refused and time.monotonic() < self._again_s):
            return None
        return str(found.decode())

    def refuse(self, version: str) -> None:
        """Ignore this stored version for ``AGAIN_S`` seconds."""
        self._refused, self._again_s = version, time.monotonic() + AGAIN_S

    async def _run(self) -> None:
        while self.enabled:
            await asyncio.sleep(EVERY_S)
            try:
                await self._follow()
            except Unavailable:
                pass
            except Exception:
                log.exception("the stored model version could not be activated")


async def _ignore() -> None:
    """Do nothing."""
