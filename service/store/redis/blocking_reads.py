"""Blocking reads, which wait for new stream entries. The reads use connections of their own, so they block no other calls."""

from __future__ import annotations

from typing import Any, Final

import structlog

from service.background import BackgroundTask
from service.store.redis.server import Server

log = structlog.get_logger(__name__)

BLOCK_S: Final = 5
"""Time in seconds that a read waits for new entries. After that time, the read is sent again."""
PAUSES_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Seconds to wait before each new attempt while the store cannot be reached. The last value repeats."""


class Reading(BackgroundTask):
    """A background task that makes blocking reads. Its client is ``_redis``, which is None before the first ``_connect``."""

    _what: str
    """Name of what is read, for log messages."""

    def __init__(self, server: Server | str, deadline_s: float) -> None:
        self._owned = isinstance(server, str)
        self._server = Server(server, deadline_s=deadline_s) if isinstance(server, str) else server
        self._redis: Any = None
        self._failures = 0
        self._generation = 0

    async def _connect(self) -> None:
        self._generation = self._server.generation
        if self._redis is None:
            self._redis = await self._server.reader(BLOCK_S)

    async def _ended(self) -> None:
        if self._redis is not None:
            await self._server.close_reader(self._redis)
        if self._owned:
            await self._server.close()

    async def _missed(self, error: BaseException) -> float:
        """React to a failed read. Only the first of several consecutive failures is logged.

        Return how many seconds to wait before the next attempt.
        """
        kind = await self._server.failed(error, self._generation)
        if self._failures == 0:
            log.warning(f"{self._what} cannot be reached", kind=kind, error=str(error) or type(error).__name__)
        pause_s = PAUSES_S[min(self._failures, len(PAUSES_S) - 1)]
        self._failures += 1
        return pause_s


def stream_id(text: bytes | str) -> tuple[int, int]:
    """Parse the id of a stream entry into (milliseconds, sequence number), which can be compared."""
    left, _, right = (text.decode() if isinstance(text, bytes) else text).partition("-")
    return int(left), int(right or 0)
