"""Restarts the embedded event store when its server process has died."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from service.background import BackgroundTask
from service.metrics import Metrics
from service.store.redis.embedded_server import EmbeddedError, EmbeddedServer

log = structlog.get_logger(__name__)

_CHECK_S: Final = 0.5


class EmbeddedStoreMonitor(BackgroundTask):
    """Checks the embedded store's server process every half second."""

    def __init__(self, server: EmbeddedServer, metrics: Metrics) -> None:
        self._server, self._metrics = server, metrics

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_CHECK_S)
            if not self._server.alive:
                log.warning("the embedded store died and is restarted")
                self._metrics.store_restarts.inc()
                try:
                    await asyncio.to_thread(self._server.start)
                except (EmbeddedError, OSError) as error:
                    log.error("the embedded store does not start", error=str(error))
