"""Blocking reads: a call that waits for new entries has connections of its own, so that it takes none from the store's calls."""

from __future__ import annotations

from typing import Any, Final

import structlog

from service.background import BackgroundTask
from service.store.redis.server import Server

log = structlog.get_logger(__name__)

BLOCK_S: Final = 5
"""Seconds that a read waits for new entries before it is sent again."""
PAUSES_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Waits between attempts while the store is out of reach."""


class Reading(BackgroundTask):
    """Background work with a client for blocking reads, ``_redis``, which is there after the first ``_connect``."""

    _what: str
    """What is read, for the log."""

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
        """Log the first of several failures in a row; returns how long to wait before the next attempt, seconds."""
        kind = await self._server.failed(error, self._generation)
        if self._failures == 0:
            log.warning(f"{self._what} is out of reach", kind=kind, error=str(error) or type(error).__name__)
        pause_s = PAUSES_S[min(self._failures, len(PAUSES_S) - 1)]
        self._failures += 1
        return pause_s


def stream_id(text: bytes | str) -> tuple[int, int]:
    """The id of a stream entry as (milliseconds, sequence number), which can be compared."""
    left, _, right = (text.decode() if isinstance(text, bytes) else text).partition("-")
    return int(left), int(right or 0)
