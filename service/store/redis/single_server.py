"""One Redis server, found by its address or through Sentinels, with a connection pool and with clients for blocking reads."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig

from service.settings.redis_address import Address
from service.store.redis.checked_connections import ConnectionGeneration, SentinelPool, connection_class
from service.store.redis.failures import NO_ANSWER, kind_of

Command = Sequence[str | bytes | int | float]

_SENTINEL_S: Final = 0.5
"""Time limit in seconds for one Sentinel to answer. After that time, the next Sentinel is asked."""


def no_retry() -> Retry:
    """Return a retry policy with which redis-py never repeats a call."""
    return Retry(NoBackoff(), 0)


def connection_options(deadline_s: float, name: str) -> dict[str, Any]:
    """Return the options that every connection has."""
    return {
        "socket_timeout": deadline_s,
        "socket_connect_timeout": deadline_s,
        "retry": no_retry(),
        "client_name": name,
        # If notifications are enabled, redis-py 8 mistakes a closed connection for one with bytes to read.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }


class SingleServer:
    """A server that holds all keys.

    ``silent`` becomes True when a call gets no reply. It becomes False when a probe gets a reply.
    """

    def __init__(
        self, address: Address, generation: ConnectionGeneration, *, deadline_s: float, connections: int
    ) -> None:
        self._address, self._generation, self._deadline_s = address, generation, deadline_s
        self._sentinel: Sentinel | None = None
        if address.kind == "sentinel":
            sentinel_deadline_s = min(_SENTINEL_S, deadline_s)
            login = {"username": address.sentinel_username, "password": address.sentinel_password}
            self._sentinel = Sentinel(
                address.hosts,
                sentinel_kwargs={
                    **connection_options(sentinel_deadline_s, "m3tr"),
                    **{name: value for name, value in login.items() if value},
                    **({"ssl": True, **address.tls_options} if address.tls else {}),
                },
            )
        self._pool = self._new_pool(connections, connection_options(deadline_s, "m3tr"), deadline_s)
        self._redis = Redis(connection_pool=self._pool)
        self.silent = False

    def _new_pool(self, connections: int, options: dict[str, Any], wait_s: float) -> BlockingConnectionPool:
        address = self._address
        options = {
            **options,
            **address.credentials(),
            "db": address.db,
            "max_connections": connections,
            "timeout": wait_s,
            "connection_class": connection_class(address, self._generation),
        }
        if self._sentinel is not None:
            return SentinelPool(  # type: ignore[no-untyped-call]
                service_name=address.master, sentinel_manager=self._sentinel, **options
            )
        if address.path is not None:
            return BlockingConnectionPool(path=address.path, **options)
        host, port = address.hosts[0]
        return BlockingConnectionPool(host=host, port=port, socket_keepalive=True, **options)

    def check_arguments(self) -> None:
        """Raise redis-py's own error unless redis-py accepts the options. No connection is made."""
        self._pool.make_connection()

    async def close(self) -> None:
        """Drop every connection."""
        await self._redis.aclose()
        await self._pool.aclose()
        if self._sentinel is not None:
            await self._sentinel.aclose()

    async def send(self, commands: Sequence[Command], end: float) -> list[Any]:
        """Run commands in one pipeline until ``end`` (loop time). Return the replies in order.

        An exception takes the place of a reply that is an error or is missing.
        """
        if self.silent:
            return [RedisSilent()] * len(commands)
        try:
            async with asyncio.timeout_at(end), self._redis.pipeline(transaction=False) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                return await pipe.execute(raise_on_error=False)
        except (RedisError, OSError, TimeoutError) as error:
            self.silent = self.silent or kind_of(error) in NO_ANSWER
            return [error] * len(commands)

    async def everywhere(self, commands: Sequence[Command], end: float) -> list[list[Any]]:
        """Run the commands over a new connection, so that the state of the pool does not matter.

        Return a list with one element: the list of replies.
        """
        connection: AbstractConnection = self._pool.make_connection()
        replies: list[Any] = []
        try:
            async with asyncio.timeout_at(end):
                await connection.connect()
                await connection.send_packed_command(connection.pack_commands(commands))
                for _ in commands:
                    try:
                        replies.append(await connection.read_response())
                    except ResponseError as error:
                        replies.append(error)
        except (RedisError, OSError, TimeoutError) as error:
            replies += [error] * (len(commands) - len(replies))
        finally:
            await connection.disconnect(nowait=True)
        return [replies]

    def note_answer(self) -> None:
        """Record that a probe was answered, so calls are sent again."""
        self.silent = False

    async def known_to_sentinels(self) -> bool | None:
        """Return whether a Sentinel knows the master's name, or None if no Sentinel answers."""
        assert self._sentinel is not None
        answered = False
        for sentinel in self._sentinel.sentinels:
            with suppress(RedisError, OSError, TimeoutError):
                if self._address.master in await sentinel.sentinel_masters():
                    return True
                answered = True
        return False if answered else None

    async def refresh(self) -> None:
        """Do nothing. Each new connection looks up the server's address anyway."""

    def reader(self, block_s: float) -> Any:
        """Create a client for blocking calls of up to ``block_s`` seconds."""
        options = reader_options(self._deadline_s, block_s)
        return Redis(connection_pool=self._new_pool(2, options, self._deadline_s))


def reader_options(deadline_s: float, block_s: float) -> dict[str, Any]:
    """Return the options of connections for blocking reads."""
    options = connection_options(deadline_s, "m3tr-reader")
    return {**options, "protocol": 2, "socket_timeout": block_s + deadline_s}


class RedisSilent(TimeoutError):
    """The call was not sent. The server did not reply to an earlier call, and has not replied to a probe since then."""

    def __init__(self) -> None:
        super().__init__("not sent: an earlier call got no reply")
