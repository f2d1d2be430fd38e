"""Connections that are checked before each call, and replaced when they are of no more use.

redis-py hands out any connection of its pool. But a server closes a connection that was idle for its ``timeout``, a load
balancer drops an idle one silently, and after a failover a connection may lead to a server that is no longer the primary. A
call on such a connection would be lost. So each connection is replaced right before it sends where one of these is true:

1. it was made before the last ``ConnectionGeneration.advance()``: it may lead to the wrong server;
2. the other side has closed it: the event loop may not have noticed yet, but the kernel has;
3. it was idle for longer than ``IDLE_S``: nothing may listen at the other end any more.
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
"""Idle seconds after which a connection is replaced; load balancers drop theirs after 60 or more."""
_CHECK_AFTER_S: Final = 0.2
"""Idle seconds after which the kernel is asked; no server closes a connection sooner."""
_HANG_UP: Final = getattr(select, "POLLRDHUP", 0)


class ConnectionGeneration:
    """A counter that all connections to one deployment share."""

    def __init__(self) -> None:
        self.generation = 0

    def advance(self) -> None:
        """Start a new generation: connections made before this are not used for another call."""
        self.generation += 1


class _CheckedConnection(AbstractConnection):
    """A mixin in front of a connection class of redis-py; see ``connection_class``."""

    current: ClassVar[ConnectionGeneration]
    _generation: int | None = None
    _idle_since: float = 0.0

    async def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        """Connect. A failure to connect is raised as Unreached, to tell it apart from the failure of a call."""
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
        """Send, over a new connection where this one is of no more use; see the module."""
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
    # Set for a hang-up of the other side, an error, or a hang-up of both sides; not for bytes to read.
    return bool(poll.poll(0))


class _SentinelConnection(_CheckedConnection, SentinelManagedConnection):
    async def read_response(self, *args: Any, **options: Any) -> Any:
        """Read as a plain connection does: READONLY is an error reply, not a broken connection."""
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
    """Connections to the server that the Sentinels call the master; a call waits for one while all are in use."""


def connection_class(address: Address, current: ConnectionGeneration) -> type[AbstractConnection]:
    """The class of checked connections to an address, which share one generation counter."""
    base: type[AbstractConnection]
    if address.kind == "sentinel":
        base = _SentinelTlsConnection if address.tls else _SentinelConnection
    elif address.path is not None:
        base = _UnixConnection
    else:
        base = _TlsConnection if address.tls else _TcpConnection
    return type(base.__name__.lstrip("_"), (base,), {"current": current})
