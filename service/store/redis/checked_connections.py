"""Connections that notice before a call is sent that they are of no more use, and are made anew then.

redis-py hands out what its pool holds. A server closes what has rested for its ``timeout``, a balancer drops it without a
word, and after a failover it leads to a server that is no primary any more; a call on such a connection would be lost. So
each connection looks, right before it sends:

1. was it made before the last ``Lifeline.cut()``? Then it may lead to the wrong server;
2. has the other side closed it? The loop may not have got to see that, but the kernel knows;
3. has it rested for longer than ``RESTED_S``? Then nobody knows whether anything still listens.
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

RESTED_S: Final = 30.0
"""Seconds of rest after which a connection is made anew; balancers drop theirs after 60 and more."""
_LOOK_S: Final = 0.2
"""Seconds of rest after which it is worth asking the kernel; no server closes sooner."""
_HANG_UP: Final = getattr(select, "POLLRDHUP", 0)


class Lifeline:
    """What all connections to one deployment share."""

    def __init__(self) -> None:
        self.generation = 0

    def cut(self) -> None:
        """Connections made before this are not used for a further call."""
        self.generation += 1


class _Line(AbstractConnection):
    """Goes before a connection class of redis-py; see ``line_class``."""

    lifeline: ClassVar[Lifeline]
    _generation: int | None = None
    _rested_since: float = 0.0

    async def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        """Connect; what fails on the way is told apart from what fails in a call."""
        if self.is_connected:
            return
        self._generation = None
        generation = self.lifeline.generation
        try:
            await super().connect_check_health(check_health, retry_socket_connect)
        except (RedisConnectionError, RedisTimeoutError) as error:
            if kind_of(error) in (CLOSED, TIMEOUT):
                raise Unreached(str(error)) from error
            raise
        self._generation = generation
        self._rested_since = asyncio.get_running_loop().time()

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Send, over a new connection where this one is of no more use."""
        if self._generation is not None:
            now = asyncio.get_running_loop().time()
            if self._useless(now):
                await self.disconnect(nowait=True)
            self._rested_since = now
        if not self.is_connected:
            await self.connect()  # type: ignore[no-untyped-call]
        await super().send_packed_command(command, check_health)

    def _useless(self, now: float) -> bool:
        writer = self._writer
        if writer is None or writer.transport.is_closing() or self._generation != self.lifeline.generation:
            return True
        if self._reader is not None and self._reader.at_eof():
            return True
        rested_s = now - self._rested_since
        return rested_s > _LOOK_S and (rested_s > RESTED_S or _hung_up(writer))


def _hung_up(writer: asyncio.StreamWriter) -> bool:
    poll = select.poll()
    try:
        poll.register(writer.get_extra_info("socket").fileno(), _HANG_UP)
    except (AttributeError, ValueError, OSError):
        return True
    # What was asked for, or an error, or a hang-up of both sides; not that something can be read.
    return bool(poll.poll(0))


class _SentinelLine(_Line, SentinelManagedConnection):
    async def read_response(self, *args: Any, **options: Any) -> Any:
        """As any connection does: READONLY is told, not taken for a connection that broke."""
        return await Connection.read_response(self, *args, **options)


class _SentinelTlsLine(_SentinelLine, SentinelManagedSSLConnection):
    pass


class _TcpLine(_Line, Connection):
    pass


class _TlsLine(_Line, SSLConnection):
    pass


class _UnixLine(_Line, UnixDomainSocketConnection):
    pass


class SentinelPool(SentinelConnectionPool, BlockingConnectionPool):
    """Connections to whatever server the Sentinels call the master; waits for one where all are in use."""


def line_class(address: Address, lifeline: Lifeline) -> type[AbstractConnection]:
    """The class of connections to an address, all of them on one lifeline."""
    base: type[AbstractConnection]
    if address.kind == "sentinel":
        base = _SentinelTlsLine if address.tls else _SentinelLine
    elif address.path is not None:
        base = _UnixLine
    else:
        base = _TlsLine if address.tls else _TcpLine
    return type(base.__name__.lstrip("_"), (base,), {"lifeline": lifeline})
