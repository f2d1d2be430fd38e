"""The process: embedded store up, HTTP up, and both down again in order."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Final

import structlog
import uvicorn

from service.app import create_app
from service.context import Context, build
from service.deployment.deployment import Deployment
from service.http.connections import ConnectionLimits, Connections, connection_limit
from service.http.protocol import protocols
from service.logs import configure_logs
from service.metrics import Metrics
from service.models.warmup import warm_first
from service.settings import Settings
from service.store import format
from service.store.health import check_at_start
from service.store.redis.embedded_server import EmbeddedServer

log = structlog.get_logger(__name__)

_LIFESPAN_S: Final = 10.0
"""Seconds for the work in the background to end, and for the models and the store's connections to close."""
_REST_S: Final = _LIFESPAN_S + 5
"""Seconds after the requests' own within which everything else has ended."""
_POLL_S: Final = 0.05
_SETTLE_S: Final = 0.2
"""Seconds in which a connection that was taken at the last moment delivers its request."""

GC_THRESHOLDS: Final = (10_000, 10, 100)
"""Objects, and collections of the younger generation, between two collections of a generation."""
UNSENT_BYTES: Final = 64 * 1024
"""Bytes of answers that the kernel keeps for a client that has no room for them; by itself, it keeps megabytes for each."""
SWITCH_S: Final = 0.0005
"""Seconds for which a thread may keep the interpreter while another waits."""


class Server(uvicorn.Server):
    """Says where it listens, once it does (with port 0 nobody knows it before), and stops without breaking a request.

    At SIGTERM it is not ready but answers for ``drain_s`` more seconds, each answer the last of its connection; then it
    takes no new connection, says goodbye to streams, and finishes what is under way, all within ``shutdown_s``; what is left
    is cut. SIGINT skips the wait.
    """

    def __init__(self, config: uvicorn.Config, context: Context, stopping: Callable[[], None] = lambda: None) -> None:
        super().__init__(config)
        self._context, self._stopping = context, stopping

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
                # Connections have it from the socket that they come in by.
                if hasattr(socket, "TCP_NOTSENT_LOWAT"):
                    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
                host, port = bound.getsockname()[:2]
                print(f"m3tr-serve listens on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, end what would never end by itself, then what is under way, and what is still there at the deadline."""
        self._context.lifecycle.draining = True
        settings, loop = self._context.settings, asyncio.get_running_loop()
        self._stopping()
        end = loop.time() + settings.drain_s
        while loop.time() < end and signal.SIGINT not in self._captured_signals:
            await asyncio.sleep(_POLL_S)
        try:
            async with asyncio.timeout(settings.shutdown_s):
                await self._take_the_last()
                await asyncio.sleep(_SETTLE_S if self.server_state.connections else 0)
                await self._context.close_streams()
                for connection in list(self.server_state.connections):
                    connection.shutdown()
                await asyncio.sleep(_POLL_S)
                await self._wait_tasks_to_complete()
        except TimeoutError:
            log.warning("the stop's patience is over", requests=len(self.server_state.tasks))
        except Exception:
            log.exception("the stop met a fault")
        await self._cut()
        if not self.force_exit:
            try:
                async with asyncio.timeout(_LIFESPAN_S):
                    await self.lifespan.shutdown()
            except TimeoutError:
                log.error("the service's own work did not end in time")

    async def _cut(self) -> None:
        """End every request and every connection that is left."""
        for task in list(self.server_state.tasks):
            task.cancel()
        if self.server_state.tasks:
            # A moment to answer: without one, a client could not tell whether to try again.
            await asyncio.wait(list(self.server_state.tasks), timeout=_SETTLE_S)
        for connection in list(self.server_state.connections):
            connection.transport.abort()

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


class Watchdog(threading.Thread):
    """Ends the process when its stop takes longer than ``seconds``, whatever holds it up; the embedded store first."""

    def __init__(self, seconds: float, store: EmbeddedServer | None) -> None:
        super().__init__(name="m3tr-watchdog", daemon=True)
        self._seconds, self._store = seconds, store

    def run(self) -> None:
        """Wait, and bite; a process that ends before takes its watchdog along."""
        time.sleep(self._seconds)
        print(
            f"m3tr-serve: the stop took longer than {self._seconds:g} s; what held it up:", file=sys.stderr, flush=True
        )
        faulthandler.dump_traceback(sys.stderr)
        if self._store is not None:
            self._store.stop()
        os._exit(1)


def configuration(context: Context, server: EmbeddedServer | None = None) -> uvicorn.Config:
    """How the service is served."""
    settings = context.settings
    connections = Connections(connection_limit(settings, settings.store_connections))
    context.metrics.watch(connections.readings)
    http, websocket = protocols(
        ConnectionLimits(
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


def _count_deaths(metrics: Metrics) -> None:
    """Log and count every thread that ends with an exception."""

    def died(told: threading.ExceptHookArgs) -> None:
        name = told.thread.name if told.thread is not None else "thread"
        log.error("a thread died", thread=name, exc_info=told.exc_value)
        metrics.task_deaths.labels("thread").inc()

    threading.excepthook = died


def _leave(number: int, frame: FrameType | None) -> None:
    # uvicorn raises the signal again after its graceful stop; the default would end the process before the store's.
    raise SystemExit(0)


def serve(settings: Settings, metrics: Metrics, deployment: Deployment) -> None:
    """Run until SIGTERM or SIGINT; requests in flight are finished first, the store stops last.

    Raises:
        EmbeddedError: the embedded store does not start.
        FormatError: the event store holds what this release does not read.
        StoreRefused: the event store at ``redis_url`` is not accepted.
        BundleError: the model cannot forecast.
    """
    configure_logs()
    _count_deaths(metrics)
    # A thread that computes forecasts gives way to the loop after this long, not after Python's 5 ms.
    sys.setswitchinterval(SWITCH_S)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    server: EmbeddedServer | None = None
    try:
        if settings.redis_url is not None:
            asyncio.run(check_at_start(settings, metrics))
            redis_url = settings.redis_url.get_secret_value()
        else:
            server = EmbeddedServer(settings.data_dir, appendfsync=settings.appendfsync, binary=settings.store_binary)
            server.start()
            redis_url = server.url
        asyncio.run(format.check_at_start(redis_url, settings, metrics))
        log.info(
            "ready to forecast",
            model_version=deployment.version,
            seconds=round(warm_first(deployment, settings.bundle), 1),
        )
        context = build(settings, metrics, deployment, redis_url)
        watchdog = Watchdog(settings.drain_s + settings.shutdown_s + _REST_S, server)
        Server(configuration(context, server), context, watchdog.start).run()
    finally:
        # A second signal must not end the process before the store's own stop.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        if server is not None:
            server.stop()
