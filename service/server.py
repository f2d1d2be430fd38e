"""Runs the service. Starts the embedded store and the HTTP server, and stops them in reverse order."""

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
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final

import structlog
import uvicorn

from service.app import create_app
from service.context import Context
from service.deployment.deployment import Deployment
from service.http.connections import ConnectionLimits
from service.http.protocol import protocols
from service.logs import configure_logs
from service.metrics import Metrics
from service.models.warmup import warm_first
from service.settings import Settings
from service.store import format
from service.store.health import check_at_start
from service.store.redis.embedded_server import EmbeddedServer
from service.wiring import build

log = structlog.get_logger(__name__)

_LIFESPAN_S: Final = 10.0
"""Time limit in seconds for ending background work and closing models and store connections."""
_AFTER_REQUESTS_S: Final = _LIFESPAN_S + 5
"""Time limit in seconds for ending the whole service, from the end of the last request."""
_POLL_S: Final = 0.05
_SETTLE_S: Final = 0.2
"""Time in seconds for which the connections accepted last can still send a request."""

GC_THRESHOLDS: Final = (10_000, 10, 100)
"""Thresholds of the garbage collector for its three generations (see ``gc.set_threshold``)."""
UNSENT_BYTES: Final = 64 * 1024
"""Maximum number of unsent bytes that the kernel buffers per connection. The kernel's default is megabytes."""
SWITCH_S: Final = 0.0005
"""Time in seconds for which a thread may hold the interpreter lock while a different thread waits for it."""


class Server(uvicorn.Server):
    """HTTP server that prints its address once it listens, and that stops without breaking a request.

    The address is printed late because, with port 0, the actual port is known only after the server listens.

    After SIGTERM, the service reports that it is not ready but accepts requests for ``drain_s`` more seconds. It closes each connection
    after the next response. Then it accepts no new connection, ends streams, and finishes the requests in progress. These three steps must
    end within ``shutdown_s`` seconds. Requests that are still in progress after that are cancelled. After SIGINT, the ``drain_s`` seconds
    are skipped.
    """

    def __init__(self, config: uvicorn.Config, context: Context, stopping: Callable[[], None] = lambda: None) -> None:
        super().__init__(config)
        self._context, self._stopping = context, stopping

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Bind the sockets, then print the address."""
        await super().startup(sockets)
        # Code and model live until the end. A full garbage collection over them would stop all requests for 0.1 s.
        gc.collect()
        gc.freeze()
        # The other long-lived objects are caches. A full collection of them is rare: once in ten million new objects.
        gc.set_threshold(*GC_THRESHOLDS)
        for server in self.servers if self.started else ():
            for bound in server.sockets:
                # Connections inherit this option from the listening socket.
                if hasattr(socket, "TCP_NOTSENT_LOWAT"):
                    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
                host, port = bound.getsockname()[:2]
                print(f"m3tr-serve listens on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, end streams, finish the requests in progress, and cancel the remaining requests at the deadline."""
        self._context.lifecycle.draining = True
        settings, loop = self._context.settings, asyncio.get_running_loop()
        self._stopping()
        end = loop.time() + settings.drain_s
        while loop.time() < end and signal.SIGINT not in self._captured_signals:
            await asyncio.sleep(_POLL_S)
        try:
            async with asyncio.timeout(settings.shutdown_s):
                await self._accept_the_last()
                await asyncio.sleep(_SETTLE_S if self.server_state.connections else 0)
                await self._context.close_streams()
                for connection in list(self.server_state.connections):
                    connection.shutdown()
                await asyncio.sleep(_POLL_S)
                await self._wait_tasks_to_complete()
        except TimeoutError:
            log.warning("requests did not end in time and are cancelled", requests=len(self.server_state.tasks))
        except Exception:
            log.exception("an error occurred while the service was stopping")
        await self._cut()
        if not self.force_exit:
            try:
                async with asyncio.timeout(_LIFESPAN_S):
                    await self.lifespan.shutdown()
            except TimeoutError:
                log.error("background work did not end in time")

    async def _cut(self) -> None:
        """Cancel the remaining requests and close the remaining connections."""
        for task in list(self.server_state.tasks):
            task.cancel()
        if self.server_state.tasks:
            # Leave time to send a response. Without a response, a client does not know whether to retry.
            await asyncio.wait(list(self.server_state.tasks), timeout=_SETTLE_S)
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    async def _accept_the_last(self) -> None:
        """Stop listening. Accept the connections that wait in the kernel's queue, because they would be reset otherwise."""
        bound = [socket.socket(fileno=os.dup(bound.fileno())) for server in self.servers for bound in server.sockets]
        for server in self.servers:
            server.close()
        accepted: list[socket.socket] = []
        for listener in bound:
            with listener, contextlib.suppress(BlockingIOError):
                listener.setblocking(False)
                while True:
                    accepted.append(listener.accept()[0])
        for connection in accepted:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection, ssl=self.config.ssl)

    def _protocol(self) -> asyncio.Protocol:
        protocol: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol


class Watchdog(threading.Thread):
    """Kills the embedded store and then the service's process if the stop takes longer than ``seconds``."""

    def __init__(self, seconds: float, store: EmbeddedServer | None) -> None:
        super().__init__(name="m3tr-watchdog", daemon=True)
        self._seconds, self._store = seconds, store

    def run(self) -> None:
        """Wait, then kill. The thread is a daemon, so it ends early if the service's process ends."""
        time.sleep(self._seconds)
        print(
            f"m3tr-serve: stopping took longer than {self._seconds:g} s; stack traces of the threads:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(sys.stderr)
        if self._store is not None:
            self._store.stop()
        os._exit(1)


def configuration(context: Context) -> uvicorn.Config:
    """Return the configuration of the HTTP server."""
    settings = context.settings
    http, websocket = protocols(
        ConnectionLimits(
            context.connections,
            settings.max_header_bytes,
            settings.head_deadline_ms / 1000,
            settings.write_deadline_ms / 1000,
            settings.body_deadline_ms / 1000,
        )
    )
    return uvicorn.Config(
        create_app(context),
        host=settings.host,
        port=settings.port,
        http=http,  # type: ignore[arg-type]
        ws=websocket,  # type: ignore[arg-type]
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_s,  # type: ignore[arg-type]
        timeout_graceful_shutdown=settings.shutdown_s,
        # A frame over ``max_body_bytes`` gets an error. A frame over twice that size is not even read.
        ws_max_size=2 * settings.max_body_bytes,
    )


def _count_deaths(metrics: Metrics) -> None:
    """Install a hook that logs and counts every thread that ends with an exception."""

    def on_death(failure: threading.ExceptHookArgs) -> None:
        name = failure.thread.name if failure.thread is not None else "thread"
        log.error("a thread failed", thread=name, exc_info=failure.exc_value)
        metrics.task_deaths.labels("thread").inc()

    threading.excepthook = on_death


def _exit(number: int, frame: FrameType | None) -> None:
    # uvicorn raises the signal again after its graceful stop. The default action would end the process before the store has stopped.
    raise SystemExit(0)


@contextlib.contextmanager
def _exit_at_once(store: EmbeddedServer | None, deployment: Deployment) -> Iterator[None]:
    """Stop the store, close the model and end the process at the first signal, without an exception in the ``with`` statement's body.

    The kernel compiler does not survive an exception at an arbitrary line: it may raise a different one, or none.
    """
    signals = (signal.SIGTERM, signal.SIGINT)

    def end(number: int, frame: FrameType | None) -> None:
        # A second signal must not interrupt the stop of the store.
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        try:
            if store is not None:
                store.stop()
            deployment.close()
        finally:
            os._exit(0)

    earlier = {number: signal.signal(number, end) for number in signals}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def serve(settings: Settings, metrics: Metrics, deployment: Deployment) -> None:
    """Run the service until SIGTERM or SIGINT. Requests in progress are finished first, and the store stops last.

    Raises:
        EmbeddedError: the embedded store does not start.
        FormatError: the event store has a format that this release does not read.
        StoreRefused: the event store at ``redis_url`` is not accepted.
        BundleError: the model cannot forecast.
    """
    configure_logs()
    _count_deaths(metrics)
    # The thread that computes forecasts hands the interpreter lock to the event loop after ``SWITCH_S``. Python's default is 5 ms.
    sys.setswitchinterval(SWITCH_S)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)
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
        with _exit_at_once(server, deployment):
            seconds = warm_first(deployment, settings.bundle)
        log.info("ready to forecast", model_version=deployment.version, seconds=round(seconds, 1))
        context = build(settings, metrics, deployment, redis_url, server=server)
        watchdog = Watchdog(settings.drain_s + settings.shutdown_s + _AFTER_REQUESTS_S, server)
        Server(configuration(context), context, watchdog.start).run()
    finally:
        # A second signal must not end the process before the store has stopped.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        if server is not None:
            server.stop()
