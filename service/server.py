"""The process: embedded store up, HTTP up, and both down again in order."""

from __future__ import annotations

import signal
import socket
from types import FrameType

import uvicorn

from service.app import create_app
from service.context import build
from service.deployment import Deployment
from service.embedded import EmbeddedServer
from service.logs import configure_logs
from service.metrics import Metrics
from service.settings import Settings


class Server(uvicorn.Server):
    """Says where it listens, once it does: with port 0 nobody knows it before."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Bind, then print the address."""
        await super().startup(sockets)
        for server in self.servers if self.started else ():
            for bound in server.sockets:
                host, port = bound.getsockname()[:2]
                print(f"m3tr-serve listens on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)


def _leave(number: int, frame: FrameType | None) -> None:
    # uvicorn raises the signal again after its graceful stop; the default would end the process before the store's.
    raise SystemExit(0)


def serve(settings: Settings, metrics: Metrics, deployment: Deployment) -> None:
    """Run until SIGTERM or SIGINT; requests in flight are finished first, the store stops last.

    Raises:
        EmbeddedError: the embedded store does not start.
    """
    configure_logs()
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
        app = create_app(build(settings, metrics, deployment, redis_url), server)
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=settings.shutdown_s,
        )
        Server(config).run()
    finally:
        if server is not None:
            server.stop()
