"""Connections that are checked before each call, and replaced if they are no longer usable.

redis-py may hand out any connection of its pool, but a connection may have become unusable. A server closes a connection that was
idle for the server's ``timeout``. A load balancer drops an idle connection without notice. After a failover, a connection may lead
to a server that is no longer the primary. A call on an unusable connection would be lost. So a connection is replaced right before
it sends if one of these conditions is true:

1. The connection was made before the last ``ConnectionGeneration.advance()``. The connection may lead to the wrong server.
2. The other side has closed the connection. The kernel knows this even if the event loop has not noticed yet.
3. The connection was idle for longer than ``IDLE_S``. A load balancer may have dropped it.
"""

from __future__ import annotations

import asyncio
import select
from typing import Any, ClassVar, Final

from redis.asyncio import BlockingConnectionPool, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.sentinel import SentinelConnectionPool, SentinelManagedConnection, SentinelManagedSSLConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.settings.redis_address import Address
from service.store.redis.failures import CLOSED, TIMEOUT, Unreached, kind_of

IDLE_S: Final = 30.0
"""Idle time in seconds after which a connection is replaced. Load balancers drop idle connections after 60 s or more."""
_CHECK_AFTER_S: Final = 0.2
"""Idle time in seconds after which the kernel is asked whether the connection is closed. No server closes a connection sooner."""
_HANG_UP: Final = getattr(select, "POLLRDHUP", 0)


class ConnectionGeneration:
    """A counter that all connections to one deployment share. A connection belongs to the generation in which it was made."""

    def __init__(self) -> None:
        self.generation = 0

    def advance(self) -> None:
        """Start a new generation. Connections of earlier generations are not used for further calls."""
        self.generation += 1


class _CheckedConnection(AbstractConnection):
    """A mixin that checks a connection before each use. In a list of base classes, the mixin comes before a class of redis-py."""

    current: ClassVar[ConnectionGeneration]
    _generation: int | None = None
    _idle_since: float = 0.0

    async def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        """Connect. Raise Unreached if that fails, so that callers can distinguish this from the failure of a call."""
        if self.is_connected:
            return
        self._generation = None
        generation = self.current.generation
        try:
            await super().connect_check_health(check_health, retry_socket_connect)
        except (RedisConnectionError, RedisTimeoutError) as error:
            if kind_of(error) in (CLOSED, TIMEOUT):
                raise Unreached(str(error)) from error
            raise
        self._generation = generation
        self._idle_since = asyncio.get_running_loop().time()

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Send a command. If this connection is no longer usable, connect again first (see the module's docstring)."""
        if self._generation is not None:
            now = asyncio.get_running_loop().time()
            if self._useless(now):
                await self.disconnect(nowait=True)
            self._idle_since = now
        if not self.is_connected:
            await self.connect()  # type: ignore[no-untyped-call]
        await super().send_packed_command(command, check_health)

    def _useless(self, now: float) -> bool:
        writer = self._writer
        if writer is None or writer.transport.is_closing() or self._generation != self.current.generation:
            return True
        if self._reader is not None and self._reader.at_eof():
            return True
        idle_s = now - self._idle_since
        return idle_s > _CHECK_AFTER_S and (idle_s > IDLE_S or _hung_up(writer))


def _hung_up(writer: asyncio.StreamWriter) -> bool:
    poll = select.poll()
    try:
        poll.register(writer.get_extra_info("socket").fileno(), _HANG_UP)
    except (AttributeError, ValueError, OSError):
        return True
    # An event is reported if the other side or both sides hung up, or if there was an error. Bytes to read are not reported.
    return bool(poll.poll(0))


class _SentinelConnection(_CheckedConnection, SentinelManagedConnection):
    async def read_response(self, *args: Any, **options: Any) -> Any:
        """Read a reply as a plain connection does. A READONLY reply is then an ordinary error, and the connection stays open."""
        return await Connection.read_response(self, *args, **options)


class _SentinelTlsConnection(_SentinelConnection, SentinelManagedSSLConnection):
    pass


class _TcpConnection(_CheckedConnection, Connection):
    pass


class _TlsConnection(_CheckedConnection, SSLConnection):
    pass


class _UnixConnection(_CheckedConnection, UnixDomainSocketConnection):
    pass


class SentinelPool(SentinelConnectionPool, BlockingConnectionPool):
    """Connections to the server that the Sentinels report as the master. If all connections are in use, a call waits for one."""


def connection_class(address: Address, current: ConnectionGeneration) -> type[AbstractConnection]:
    """Create the class of checked connections to an address. All its connections share the counter ``current``."""
    base: type[AbstractConnection]
    if address.kind == "sentinel":
        base = _SentinelTlsConnection if address.tls else _SentinelConnection
    elif address.path is not None:
        base = _UnixConnection
    else:
        base = _TlsConnection if address.tls else _TcpConnection
    return type(base.__name__.lstrip("_"), (base,), {"current": current})
