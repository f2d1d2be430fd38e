"""The process: embedded store up, HTTP up, and both down again in order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
from types import FrameType
from typing import Final

import uvicorn

from service.app import create_app
from service.context import Context, build
from service.http.connections import Connections, room
from service.http.protocol import Line, protocols
from service.logs import configure_logs
from service.metrics import Metrics
from service.models.deployment import Deployment
from service.settings import Settings
from service.store.embedded import EmbeddedServer

_POLL_S: Final = 0.05
_SETTLE_S: Final = 0.2
"""Seconds in which a connection that was taken at the last moment delivers its request."""

GC_THRESHOLDS: Final = (10_000, 10, 100)
"""Objects, and collections of the younger generation, between two collections of a generation."""
SWITCH_S: Final = 0.0005
"""Seconds for which a thread may keep the interpreter while another waits."""


class Server(uvicorn.Server):
    """Says where it listens, once it does (with port 0 nobody knows it before), and stops without breaking a request.

    At SIGTERM it is not ready but answers for ``drain_s`` more seconds, each answer the last of its connection; then it
    takes no new connection, says goodbye to streams, and finishes what is under way. SIGINT skips the wait.
    """

    def __init__(self, config: uvicorn.Config, context: Context) -> None:
        super().__init__(config)
        self._context = context

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Bind, then print the address."""
        await super().startup(sockets)
        # Code and model stay to the end: a full collection that walked them would stop every request for 0.1 s.
        gc.collect()
        gc.freeze()
        # What remains are caches, which are no garbage either: the full collection is left for once in ten million objects.
        gc.set_threshold(*GC_THRESHOLDS)
        for server in self.servers if self.started else ():
            for bound in server.sockets:
                host, port = bound.getsockname()[:2]
                print(f"m3tr-serve listens on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, end what would never end by itself, then stop as always."""
        self._context.lifecycle.draining = True
        loop = asyncio.get_running_loop()
        end = loop.time() + self._context.settings.drain_s
        while loop.time() < end and signal.SIGINT not in self._captured_signals:
            await asyncio.sleep(_POLL_S)
        await self._take_the_last()
        await asyncio.sleep(_SETTLE_S if self.server_state.connections else 0)
        await self._context.close_streams()
        await super().shutdown(sockets)

    async def _take_the_last(self) -> None:
        """Stop listening; connections that the kernel has made but nobody has taken yet would be reset, so take them."""
        bound = [socket.socket(fileno=os.dup(bound.fileno())) for server in self.servers for bound in server.sockets]
        for server in self.servers:
            server.close()
        taken: list[socket.socket] = []
        for listener in bound:
            with listener, contextlib.suppress(BlockingIOError):
                listener.setblocking(False)
                while True:
                    taken.append(listener.accept()[0])
        for line in taken:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, line, ssl=self.config.ssl)

    def _protocol(self) -> asyncio.Protocol:
        protocol: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol


def configuration(context: Context, server: EmbeddedServer | None = None) -> uvicorn.Config:
    """How the service is served."""
    settings = context.settings
    connections = Connections(room(settings))
    context.metrics.watch(connections.readings)
    http, websocket = protocols(
        Line(
            connections,
            settings.max_header_bytes,
            settings.head_deadline_ms / 1000,
            settings.write_deadline_ms / 1000,
            settings.body_deadline_ms / 1000,
        )
    )
    return uvicorn.Config(
        create_app(context, server),
        host=settings.host,
        port=settings.port,
        http=http,  # type: ignore[arg-type]
        ws=websocket,  # type: ignore[arg-type]
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_s,  # type: ignore[arg-type]
        timeout_graceful_shutdown=settings.shutdown_s,
        # A frame over its limit is refused by name; one of twice the size is not even read.
        ws_max_size=2 * settings.max_body_bytes,
    )


def _leave(number: int, frame: FrameType | None) -> None:
    # uvicorn raises the signal again after its graceful stop; the default would end the process before the store's.
    raise SystemExit(0)


def serve(settings: Settings, metrics: Metrics, deployment: Deployment) -> None:
    """Run until SIGTERM or SIGINT; requests in flight are finished first, the store stops last.

    Raises:
        EmbeddedError: the embedded store does not start.
    """
    configure_logs()
    # A thread that computes forecasts gives way to the loop after this long, not after Python's 5 ms.
    sys.setswitchinterval(SWITCH_S)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    server: EmbeddedServer | None = None
    try:
        if settings.redis_url is not None:
            redis_url = settings.redis_url.get_secret_value()
        else:
            server = EmbeddedServer(settings.data_dir, appendfsync=settings.appendfsync, binary=settings.store_binary)
            server.start()
            redis_url = server.url
        context = build(settings, metrics, deployment, redis_url)
        Server(configuration(context, server), context).run()
    finally:
        if server is not None:
            server.stop()
